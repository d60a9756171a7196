//! Where hooks and notifications go: a URL, which may be a secret, and what proves who sends.

use std::{fmt, ops::Range, path::PathBuf, str::FromStr};

use http::{Uri, uri::Scheme};

use super::{files::Noted, report::Report, tls::authorities, written::Text};
use crate::tls::files::Authorities;

/// Where something is sent, over HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The URL, or the file that it stands in.
    pub address: Source,
    /// Whom its certificate has to come from, if it has one; nothing means the authorities of this system.
    pub ca: Option<Authorities>,
    /// A file with fields that are sent along, a line each.
    pub headers: Option<PathBuf>,
}

/// A URL, or a file that is read whenever something is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The URL itself.
    Url(Address),
    /// A file whose first line it is.
    File(PathBuf),
}

/// An absolute URL of HTTP. Whoever knows it may be able to use it, so only its scheme and its host are shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether it is spoken to in TLS.
    pub is_https: bool,
    /// Its host, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Host and port as they are written.
    pub authority: String,
    /// The rest of it.
    pub path: String,
}

/// What is wrong with a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not an absolute URL of `http` or `https`, without a user and with a host")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let uri: Uri = text.trim().parse().map_err(|_| NoAddress)?;
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(NoAddress),
        };
        let authority = uri.authority().ok_or(NoAddress)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(NoAddress);
        }
        Ok(Self {
            is_https,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if is_https { 443 } else { 80 }),
            authority: authority.to_string(),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/…", if self.is_https { "https" } else { "http" }, self.authority)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(address) => address.fmt(f),
            Self::File(path) => write!(f, "the URL in {}", path.display()),
        }
    }
}

/// The keys of a target as written.
pub(super) struct Written {
    pub(super) url: Option<Text>,
    pub(super) url_file: Option<Text>,
    pub(super) ca_file: Option<Text>,
    pub(super) headers_file: Option<Text>,
}

/// Where something goes; `place` is that of the table, `what` is sent.
pub(super) fn lower(
    written: Written,
    place: Range<usize>,
    what: &str,
    report: &mut Report<'_>,
) -> Option<Target> {
    let Written { url, url_file, ca_file, headers_file } = written;
    let ca = ca_file.map(|written| authorities(&written, report));
    let headers = headers_file.map(|written| file(&written, report));
    let address = match (url, url_file) {
        (Some(url), None) => match url.get_ref().parse() {
            Ok(address) => {
                let address: Address = address;
                if ca.is_none() && address.is_https {
                    report.note(Noted::System(url.span()));
                }
                Some(Source::Url(address))
            }
            Err(NoAddress) => {
                report
                    .error(url.span(), format!("`url` is not one: {NoAddress}"))
                    .help("write it whole, such as `\"https://hooks.example/rollouts\"`");
                None
            }
        },
        (None, Some(path)) => Some(Source::File(file(&path, report))),
        (None, None) => {
            report
                .error(place, format!("this {what} does not say where it goes"))
                .help("add `url = \"https://…\"`, or `url_file` with a file that the URL stands in");
            None
        }
        (Some(_), Some(second)) => {
            report
                .error(second.span(), format!("this {what} says twice where it goes"))
                .help("keep one of `url` and `url_file`");
            None
        }
    };
    Some(Target { address: address?, ca, headers })
}

/// A file that is read when it is needed; that it can be is looked at when the configuration is loaded.
pub(super) fn file(written: &Text, report: &mut Report<'_>) -> PathBuf {
    let path = PathBuf::from(written.get_ref());
    report.note(Noted::Text(path.clone(), written.span()));
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<Address, NoAddress> {
        text.parse()
    }

    #[test]
    fn a_url_is_absolute_and_of_http() {
        let whole = address("https://hooks.example:8443/a/b?c=d").unwrap();
        assert_eq!((whole.is_https, whole.host.as_str(), whole.port), (true, "hooks.example", 8443));
        assert_eq!((whole.authority.as_str(), whole.path.as_str()), ("hooks.example:8443", "/a/b?c=d"));
        let short = address("http://[::1]\n").unwrap();
        assert_eq!((short.host.as_str(), short.port, short.path.as_str()), ("::1", 80, "/"));
        assert_eq!(address("https://a").unwrap().port, 443);
        for wrong in ["", "a", "/a", "a.b:80", "ftp://a/", "http://u:p@a/", "http:///a", "http://a b/"] {
            assert_eq!(address(wrong), Err(NoAddress), "{wrong}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let address = address("https://hooks.slack.com/services/T0/B0/secret").unwrap();
        assert_eq!(address.to_string(), "https://hooks.slack.com/…");
        assert_eq!(format!("{:?}", Source::Url(address)), "Url(Address(https://hooks.slack.com/…))");
    }
}
