//! Durations and sizes as people write them: `250ms`, `5m`, `1h30m`; `16KiB`, `10MiB`.

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

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: write a whole number with a unit, such as `512B`, `16KiB` or `10MiB`")]
pub struct InvalidSize(pub String);

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("B", 0)];

/// Reads a size in bytes, such as `512B`, `16KiB`, `10MiB` or `1GiB`.
///
/// # Errors
/// When the text is anything else, a bare number included, or more than 64 bits can hold.
pub fn parse_size(text: &str) -> Result<u64, InvalidSize> {
    let invalid = || InvalidSize(text.to_owned());
    let split = UNITS.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?.trim_end(), *shift)));
    let (digits, shift) = split.ok_or_else(invalid)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    let number: u64 = digits.parse().map_err(|_| invalid())?;
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

/// Writes a size the way [`parse_size`] reads it, in the largest unit that leaves no fraction.
pub fn format_size(bytes: u64) -> String {
    let whole = |(_, shift): &&(&str, u32)| bytes.is_multiple_of(1 << *shift);
    let largest = UNITS.iter().filter(whole).max_by_key(|(_, shift)| *shift);
    match largest {
        Some((unit, shift)) if bytes > 0 => format!("{}{unit}", bytes >> shift),
        _ => format!("{bytes}B"),
    }
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

    #[test]
    fn sizes_read_and_write_alike() {
        for (text, bytes) in
            [("0B", 0), ("512B", 512), ("16KiB", 16_384), ("10MiB", 10 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!((parse_size(text), format_size(bytes).as_str()), (Ok(bytes), text));
        }
        assert_eq!(parse_size("16 KiB"), Ok(16_384));
        for bad in ["", "5", "KiB", "-1B", "+1B", "1.5MiB", "1kb", "99999999999GiB"] {
            assert_eq!(parse_size(bad), Err(InvalidSize(bad.to_owned())));
        }
    }
}
