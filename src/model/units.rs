//! Durations as people write them: `250ms`, `5m`, `1h30m`.

use std::time::Duration;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration: write a number with a unit, such as `250ms`, `30s`, `5m` or `1h`")]
pub struct InvalidDuration(pub String);

/// Reads a duration such as `250ms`, `5m` or `1h30m`.
///
/// # Errors
/// When the text is anything else; a bare number is refused because its unit would be a guess.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    humantime::parse_duration(text).map_err(|_| InvalidDuration(text.to_owned()))
}

/// Writes a duration the way [`parse_duration`] reads it, without the parts below a millisecond.
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write_alike() {
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(format_duration(Duration::from_micros(1_500_700)), "1s 500ms");
        for bad in ["", "5", "-1s", "5 parsecs"] {
            assert_eq!(parse_duration(bad), Err(InvalidDuration(bad.to_owned())));
        }
    }
}
