//! Names of things, parsed once: whoever holds a name may put it into a metric label, a URL path
//! or a log line without escaping it.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest name, in bytes: that of a Kubernetes label value.
pub const MAX_LEN: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text is empty.
    #[error("a name cannot be empty")]
    Empty,
    /// The text has more than [`MAX_LEN`] bytes.
    #[error("a name has at most {MAX_LEN} characters, this one has {0}")]
    TooLong(usize),
    /// The text holds a character that names do not have, or begins or ends with a separator.
    #[error(
        "`{0}` is not a name: letters, digits, `-`, `_` and `.` are allowed, and the first and last character must be a letter or digit"
    )]
    Characters(String),
}

fn parse(text: &str) -> Result<Arc<str>, InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > MAX_LEN {
        return Err(InvalidName::TooLong(text.len()));
    }
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: u8| b.is_ascii_alphanumeric();
    if !bytes.iter().all(inner) || !edge(bytes[0]) || !edge(bytes[bytes.len() - 1]) {
        return Err(InvalidName::Characters(text.to_owned()));
    }
    Ok(text.into())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name! {
    /// The name of a service: what routes lead to.
    ServiceName
}
name! {
    /// The name of a backend: a set of endpoints that run one version.
    BackendName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_once() {
        for good in ["web", "v1.2.3", "a", "Blue_green-2"] {
            assert_eq!(good.parse::<ServiceName>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<ServiceName>(), Err(InvalidName::Empty));
        assert_eq!("x".repeat(64).parse::<ServiceName>(), Err(InvalidName::TooLong(64)));
        for bad in ["-web", "web-", "we b", "wëb", "a/b", "a\"b", "a\n"] {
            assert_eq!(bad.parse::<ServiceName>(), Err(InvalidName::Characters(bad.to_owned())));
        }
    }
}
