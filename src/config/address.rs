//! Addresses to listen on, shared by listeners and the admin side.

use std::net::{IpAddr, SocketAddr};

use super::{report::Report, written::Text};

/// An address to listen on; nothing, and a fault, if it is wrong. `example` is a right one.
pub(super) fn parse(written: &Text, example: &SocketAddr, report: &mut Report<'_>) -> Option<SocketAddr> {
    let text = written.get_ref();
    let address = text.parse().ok();
    if address.is_none() {
        report
            .error(written.span(), format!("`{text}` is not an address to listen on"))
            .help(remedy(text, example));
    }
    address
}

/// Guesses what was meant; where it cannot, shows what an address looks like.
fn remedy(text: &str, example: &SocketAddr) -> String {
    let ip = example.ip();
    let rest = text.rsplit_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/');
    let (host, port) = rest.rsplit_once(':').unwrap_or_else(|| match rest.parse::<u16>() {
        Ok(_) => ("", rest),
        Err(_) => (rest, ""),
    });
    if let Ok(address) = rest.parse::<IpAddr>() {
        return format!("add a port: `\"{}\"`", SocketAddr::new(address, example.port()));
    }
    if port.parse::<u16>().is_err() {
        let range = "a port is a number from 0 to 65535";
        return format!("write an IP address and a port, such as `\"{example}\"`; {range}");
    }
    match host {
        "" | "*" => format!("write an IP address before the port: `\"{ip}:{port}\"`"),
        "localhost" => format!("write the IP address: `\"127.0.0.1:{port}\"`"),
        _ if rest.parse::<SocketAddr>().is_ok() => format!("write only `\"{rest}\"`"),
        _ => format!("write an IP address and a port, such as `\"{ip}:{port}\"`"),
    }
}

/// Whether the two cannot both be listened on: same port, and same IP address or one of them
/// stands for all of its family. Port 0 is a different one each time.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_family && overlap
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 8080))
    }

    #[test]
    fn the_remedy_is_what_was_probably_meant() {
        for (text, expected) in [
            ("8081", "write an IP address before the port: `\"0.0.0.0:8081\"`"),
            (":8081", "write an IP address before the port: `\"0.0.0.0:8081\"`"),
            ("*:8081", "write an IP address before the port: `\"0.0.0.0:8081\"`"),
            ("10.0.0.1", "add a port: `\"10.0.0.1:8080\"`"),
            ("::1", "add a port: `\"[::1]:8080\"`"),
            ("localhost:8081", "write the IP address: `\"127.0.0.1:8081\"`"),
            ("http://10.0.0.1:8081/", "write only `\"10.0.0.1:8081\"`"),
            ("a.example:8081", "write an IP address and a port, such as `\"0.0.0.0:8081\"`"),
            (
                "0.0.0.0:80800",
                "write an IP address and a port, such as `\"0.0.0.0:8080\"`; a port is a number from 0 to 65535",
            ),
        ] {
            assert_eq!(remedy(text, &example()), expected, "{text}");
        }
    }

    #[test]
    fn addresses_collide_on_the_same_port_of_overlapping_ips() {
        let both = |a: &str, b: &str| collide(a.parse().unwrap(), b.parse().unwrap());
        assert!(both("0.0.0.0:80", "127.0.0.1:80"));
        assert!(both("10.0.0.1:80", "10.0.0.1:80"));
        assert!(!both("10.0.0.1:80", "10.0.0.2:80"));
        assert!(!both("10.0.0.1:80", "10.0.0.1:81"));
        assert!(!both("0.0.0.0:80", "[::]:80"));
        assert!(!both("0.0.0.0:0", "0.0.0.0:0"));
    }
}
