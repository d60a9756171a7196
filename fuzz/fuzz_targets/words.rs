//! Weights, durations and names: what is read is written so that it reads the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::model::{
    name::ServiceName,
    units::{format_duration, parse_duration},
    weight::Weight,
};

fuzz_target!(|text: &str| {
    if let Ok(weight) = text.parse::<Weight>() {
        assert_eq!(weight.to_string().parse(), Ok(weight));
        assert_eq!(Weight::from_hundredths(weight.hundredths()), Ok(weight));
    }
    if let Ok(duration) = parse_duration(text)
        && let Ok(millis) = u64::try_from(duration.as_millis())
    {
        let again = parse_duration(&format_duration(duration)).expect("what we write can be read");
        assert_eq!(again.as_millis(), u128::from(millis));
    }
    if let Ok(name) = text.parse::<ServiceName>() {
        assert_eq!(name.as_str(), text);
    }
});
