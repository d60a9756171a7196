//! W3C Trace Context: which trace a request belongs to, and whether it is sampled, as `traceparent` says.

/// What `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not zero.
    pub trace_id: u128,
    /// The span that the request was made in; not zero.
    pub span_id: u64,
    /// Whether whoever made it records it.
    pub sampled: bool,
}

/// Bytes of a `traceparent` of version 00.
pub const LENGTH: usize = 55;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl TraceContext {
    /// Reads a `traceparent`; nothing if it is none. Of a version that is newer than 00, what stands where it
    /// stands in that one is read (W3C Trace Context, section 3.2.4).
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (known, rest) = text.split_at_checked(LENGTH)?;
        let version = number(&known[..2])?;
        let whole =
            if version == 0 { rest.is_empty() } else { rest.first().is_none_or(|next| *next == b'-') };
        let parted = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        if version == 0xff || !whole || !parted {
            return None;
        }
        let trace_id = number(&known[3..35]).filter(|id| *id != 0)?;
        let span_id = number(&known[36..52]).filter(|id| *id != 0)? as u64;
        Some(Self { trace_id, span_id, sampled: number(&known[53..])? & 1 == 1 })
    }

    /// The same as text.
    pub fn to_bytes(self) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        for (at, digit) in text[3..35].iter_mut().zip((0..32).rev()) {
            *at = DIGITS[(self.trace_id >> (4 * digit)) as usize & 15];
        }
        for (at, digit) in text[36..52].iter_mut().zip((0..16).rev()) {
            *at = DIGITS[(self.span_id >> (4 * digit)) as usize & 15];
        }
        text[LENGTH - 1] = DIGITS[usize::from(self.sampled)];
        text
    }
}

/// A number of at most 32 digits in lower-case hexadecimal, the only case that is allowed.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_is_read_as_it_stands() {
        let context = TraceContext::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((context.span_id, context.sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(context.to_bytes(), TEXT.as_bytes());
        let other = TraceContext::parse(TEXT.replace("-01", "-fe").as_bytes()).unwrap();
        assert_eq!(other, TraceContext { sampled: false, ..context });
    }

    #[test]
    fn what_is_newer_is_read_as_far_as_it_is_known_and_what_is_wrong_is_nothing() {
        let newer = TEXT.replacen("00", "cc", 1);
        for text in [newer.clone(), newer.clone() + "-what", newer.replace("-01", "-03")] {
            assert!(TraceContext::parse(text.as_bytes()).is_some_and(|context| context.sampled), "{text}");
        }
        let wrong = [
            String::new(),
            TEXT[1..].to_owned(),
            TEXT.to_owned() + "-what",
            newer + "x",
            TEXT.replacen("00", "ff", 1),
            TEXT.replacen("00", "0x", 1),
            TEXT.to_uppercase(),
            TEXT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            TEXT.replace("b7ad6b7169203331", &"0".repeat(16)),
            TEXT.replace("-01", "_01"),
            TEXT.replace("-01", "-0g"),
        ];
        for text in wrong {
            assert_eq!(TraceContext::parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace_id in 1u128.., span_id in 1u64.., sampled: bool) {
            let context = TraceContext { trace_id, span_id, sampled };
            prop_assert_eq!(TraceContext::parse(&context.to_bytes()), Some(context));
        }
    }
}
