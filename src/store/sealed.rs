//! The form in which everything is kept: one line of JSON that says its schema and carries a checksum.
//!
//! `{"schema":1,"checksum":"…","body":{…}}`. The checksum is SipHash 1-3 of the body's bytes as they
//! stand, in hexadecimal. It finds what a disk has forgotten or changed; it keeps nobody from changing a
//! file on purpose, who may as well write its checksum.

use std::{hash::Hasher, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use siphasher::sip::SipHasher13;

use super::error::StoreError;

/// The schema that is written. It rises with any change after which a body of before could no longer be
/// read: then `STEPS` gets the step that leads there. ARCHITECTURE.md says what else that takes.
pub const SCHEMA: u32 = 1;

/// What makes a body of each older schema one of the next: the first makes one of 2 out of one of 1.
const STEPS: [fn(&mut Value); SCHEMA as usize - 1] = [];

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    schema: u32,
    checksum: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// A body as a line, with its line feed.
pub(super) fn seal(body: &RawValue) -> Vec<u8> {
    let sealed = Sealed { schema: SCHEMA, checksum: checksum(body), body };
    let mut line = serde_json::to_vec(&sealed).expect("numbers, text and JSON can be written as JSON");
    line.push(b'\n');
    line
}

/// What is written as it will stand.
pub(super) fn raw(body: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(body).expect("records have text for keys")
}

/// A line's body, once it has been found whole; `offset` is where the line begins in its `file`.
///
/// # Errors
/// When it is not what was written, or was written by a newer version.
pub(super) fn open<T: DeserializeOwned>(line: &[u8], file: &Path, offset: u64) -> Result<T, StoreError> {
    let corrupt = |what: String| StoreError::Corrupt { file: file.to_owned(), offset, what };
    let sealed: Sealed<'_> =
        serde_json::from_slice(line).map_err(|error| corrupt(format!("it cannot be read: {error}")))?;
    if checksum(sealed.body) != sealed.checksum {
        return Err(corrupt("its checksum does not fit".to_owned()));
    }
    if sealed.schema > SCHEMA {
        return Err(StoreError::NewerSchema { file: file.to_owned(), schema: sealed.schema });
    }
    let parsed = match older(sealed.schema) {
        Some([]) => serde_json::from_str(sealed.body.get()),
        Some(steps) => serde_json::from_str(sealed.body.get()).and_then(|mut body: Value| {
            steps.iter().for_each(|step| step(&mut body));
            serde_json::from_value(body)
        }),
        None => return Err(corrupt("there is no schema 0".to_owned())),
    };
    parsed.map_err(|error| corrupt(format!("it does not say what it should: {error}")))
}

/// The steps from a schema to ours.
fn older(schema: u32) -> Option<&'static [fn(&mut Value)]> {
    STEPS.get(usize::try_from(schema.checked_sub(1)?).ok()?..)
}

fn checksum(body: &RawValue) -> String {
    let mut hasher = SipHasher13::new();
    hasher.write(body.get().as_bytes());
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[u8]) -> Result<Value, String> {
        open(line, Path::new("web/state.json"), 7).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_sealed_is_opened_and_nothing_else_is() {
        let line = seal(&raw(&serde_json::json!({"weight": 12.5, "salt": u64::MAX})));
        assert_eq!(read(&line).unwrap()["salt"], u64::MAX);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        for at in 0..line.len() - 1 {
            assert!(read(&line[..at]).is_err(), "{at} bytes of it");
            let mut changed = line.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "byte {at} changed");
        }
    }

    #[test]
    fn a_newer_schema_is_told_from_a_broken_line() {
        let line = String::from_utf8(seal(&raw(&1))).unwrap();
        let newer = read(line.replace("\"schema\":1", "\"schema\":9").as_bytes()).unwrap_err();
        assert!(newer.contains("a newer version of Tidegate wrote web/state.json"), "{newer}");
        let none = read(line.replace("\"schema\":1", "\"schema\":0").as_bytes()).unwrap_err();
        assert_eq!(none, "web/state.json is corrupt at byte 7: there is no schema 0");
    }
}
