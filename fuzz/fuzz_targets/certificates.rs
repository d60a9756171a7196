//! Files with a certificate and its key, a zero byte between them; the first stands for authorities as
//! well. They are taken, or it is said what is wrong with them, in plain text.

#![no_main]

use std::{env, fs, process};

use libfuzzer_sys::fuzz_target;
use tidegate::tls::files::{Authorities, Pair, Source as _};

fuzz_target!(|data: &[u8]| {
    let folder = env::temp_dir().join(format!("tidegate-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).expect("there is room for temporary files");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let middle = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (first, second) = data.split_at(middle);
    fs::write(&certificate, first).expect("it can be written");
    fs::write(&key, second.get(1..).unwrap_or_default()).expect("it can be written");
    let pair = Pair { certificate: certificate.clone(), key };
    let said = match pair.load() {
        Ok(made) => made.names.join(" "),
        Err(fault) => format!("{fault}; {}", fault.remedy()),
    };
    let authorities =
        Authorities(certificate).load().map_or_else(|fault| fault.to_string(), |_| String::new());
    for text in [said, authorities] {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
});
