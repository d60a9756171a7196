//! `upgrades` of `[services.NAME]`: what a client's connection may be switched to.

use super::{report::Report, written::Text};

/// What most applications that switch at all switch to.
const DEFAULT: &str = "websocket";

/// The protocols, in lower case.
pub(super) fn lower(written: Option<Vec<Text>>, report: &mut Report<'_>) -> Vec<String> {
    let Some(written) = written else { return vec![DEFAULT.to_owned()] };
    let mut upgrades = Vec::with_capacity(written.len());
    for text in written {
        let name = text.get_ref().to_ascii_lowercase();
        let (problem, remedy) = if !is_name(&name) {
            (format!("`{name}` cannot name a protocol"), "write a name such as `\"websocket\"`")
        } else if name == "h2c" || name == "http" || name.starts_with("http/") || name.starts_with("tls/") {
            (
                format!("an upgrade to `{name}` would hide the requests that follow from the routes"),
                "remove it: HTTP/2 is spoken to clients without an upgrade",
            )
        } else if upgrades.contains(&name) {
            (format!("`{name}` is in `upgrades` twice"), "name each protocol once")
        } else {
            upgrades.push(name);
            continue;
        };
        report.error(text.span(), problem).help(remedy);
    }
    upgrades
}

/// Whether it is a token with, perhaps, a version (RFC 9110, section 7.8).
fn is_name(name: &str) -> bool {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let (name, version) = name.split_once('/').unwrap_or((name, "1"));
    token(name) && token(version)
}

#[cfg(test)]
mod tests {
    use super::super::testing::errors_of;
    use crate::config::{Service, load::parse};

    fn text(keys: &str) -> String {
        format!(
            "[[listeners]]\naddress = '0.0.0.0:8080'\n[[routes]]\nservice = 'web'\n[services.web]\nstable = 'v1'\n\
             {keys}\n[services.web.backends.v1]\nendpoints = ['http://127.0.0.1:9001']\n"
        )
    }

    fn service(keys: &str) -> Service {
        parse("test.toml", &text(keys)).unwrap().0.services.remove(0)
    }

    #[test]
    fn websocket_is_allowed_unless_something_else_is_said() {
        assert_eq!(service("").upgrades, ["websocket"]);
        assert_eq!(service("upgrades = ['WebSocket', 'x/1']").upgrades, ["websocket", "x/1"]);
        assert_eq!(service("upgrades = []").upgrades, [""; 0]);
    }

    #[test]
    fn http_itself_is_no_upgrade() {
        let wrong = errors_of(&text("upgrades = ['h2c', 'a b', 'x', 'X']"));
        assert_eq!(
            wrong,
            [
                "an upgrade to `h2c` would hide the requests that follow from the routes",
                "`a b` cannot name a protocol",
                "`x` is in `upgrades` twice"
            ]
        );
    }
}
