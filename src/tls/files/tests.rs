//! What is found in files, and what is said about those that are no good.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};
use tempfile::TempDir;

use super::*;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

fn issued(key: &KeyPair) -> String {
    let mut params = CertificateParams::new(["Web.test".to_owned(), "*.web.test".to_owned()]).unwrap();
    params.not_after = date_time_ymd(2040, 1, 1);
    params.self_signed(key).unwrap().pem()
}

#[test]
fn names_and_expiry_are_found() {
    let folder = Folder::new();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = folder.write("web.pem", &issued(&key));
        let pair = Pair { certificate, key: folder.write("web.key", &key.serialize_pem()) };
        let found = pair.load().unwrap();
        assert_eq!(found.names, ["Web.test", "*.web.test"]);
        assert_eq!(found.not_after.as_millis(), 2_208_988_800_000);
        let at = |millis| pair.check(&found, Timestamp::from_millis(millis));
        assert_eq!(at(2_208_988_799_999), Ok(()));
        assert_eq!(at(2_208_988_800_000), Err(Fault::Expired(pair.certificate.clone())));
    }
}

#[test]
fn a_fingerprint_follows_the_contents() {
    let folder = Folder::new();
    let authorities = Authorities(folder.write("ca.pem", "one"));
    let first = authorities.fingerprint();
    assert_eq!(authorities.fingerprint(), first);
    folder.write("ca.pem", "two");
    let second = authorities.fingerprint();
    fs::remove_file(&authorities.0).unwrap();
    let gone = authorities.fingerprint();
    folder.write("ca.pem", "one");
    assert!(first != second && second != gone && first != gone);
    assert_eq!(authorities.fingerprint(), first);
}

#[test]
fn files_that_are_no_good_are_told_apart() {
    let folder = Folder::new();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (good, good_key) = (issued(&key), key.serialize_pem());
    let fault = |certificate: &str, key: &str| {
        let certificate = folder.write("web.pem", certificate);
        let key = folder.write("web.key", key);
        let fault = Pair { certificate, key }.load().unwrap_err();
        fault.to_string().replace(&format!("{}/", folder.0.path().display()), "")
    };
    assert_eq!(fault("", &good_key), "there is no certificate in `web.pem`");
    assert_eq!(fault(&good, &good), "there is no private key in `web.key`");
    assert_eq!(
        fault(&good, &other.serialize_pem()),
        "the key in `web.key` does not belong to the certificate in `web.pem`"
    );
    let cut = good.replace("-----END CERTIFICATE-----", "");
    assert!(fault(&cut, &good_key).starts_with("`web.pem` is malformed"));
    let garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    assert!(fault(garbage, &good_key).starts_with("`web.pem` is malformed"));
    let garbage = "-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n";
    assert_eq!(fault(&good, garbage), "the private key in `web.key` is of a kind that is not supported");
    let pipe = Authorities(folder.0.path().to_owned());
    assert!(pipe.load().unwrap_err().to_string().ends_with("it is not a regular file"));
}
