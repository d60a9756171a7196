//! A configuration: any text is either refused with something to say, or can be compiled into a
//! snapshot. What is said steers no terminal.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prometheus::Registry;
use tidegate::{
    config::{diagnostic::render, load::parse},
    controller::publish::Compiled,
    tls::reload::Keeper,
};

fuzz_target!(|text: &str| {
    let said = match parse("tidegate.toml", text) {
        Ok((mut config, warnings)) => {
            // No file is read that a fuzzer has made up the name of.
            for service in &mut config.services {
                service.cookie_secrets = None;
                service.backends.iter_mut().for_each(|backend| backend.tls = None);
            }
            let mut keeper = Keeper::new(&Registry::new()).expect("nothing else is registered");
            Compiled::new(&config, &mut keeper).expect("nothing is read from files");
            render(&warnings)
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a word");
            render(&errors)
        }
    };
    assert!(!said.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{said:?}");
});
