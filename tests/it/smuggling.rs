//! Requests that two readers could read in two ways: each is refused, or reaches the backend in a form
//! that has one reading. A row for each case; the bytes are what a client sends.

use std::net::Shutdown;

use crate::support::{Backend, Tidegate, Web, get, reply};

/// What must become of the bytes.
enum Then {
    /// This status, nothing at the backend, and the end of the connection.
    Refused(&'static [u16]),
    /// So many requests at the backend; then the connection goes on, or ends.
    Taken { requests: usize, ends: bool },
}

use Then::{Refused, Taken};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

/// Rows: what is tried, the head after `Host` or the whole head, what follows it, what must happen.
const TABLE: &[(&str, &str, &str, Then)] = &[
    // ── Content-Length and Transfer-Encoding ──
    (
        "CL and TE: chunked counts, and nothing follows on this connection",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
        Taken { requests: 1, ends: true },
    ),
    (
        "TE and CL, the other way round",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        "0\r\n\r\n",
        Taken { requests: 1, ends: true },
    ),
    (
        "two lengths that differ",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 0\r\n\r\n", "", Refused(&[400])),
    ("a signed length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", "", Refused(&[400])),
    (
        "a length in hexadecimal",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    ("an empty length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n", "", Refused(&[400])),
    (
        "the same length twice is one length",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "",
        Taken { requests: 1, ends: false },
    ),
    (
        "a coding before chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "0\r\n\r\n",
        Refused(&[501]),
    ),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "0\r\n\r\n",
        Refused(&[400, 501]),
    ),
    (
        "a coding that is not chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    (
        "a vertical tab before chunked",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        "0\r\n\r\n",
        Refused(&[400]),
    ),
    (
        "chunked in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
        Refused(&[400]),
    ),
    (
        "chunked in two fields",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
        Refused(&[501]),
    ),
    // ── chunks ──
    (
        "a chunk size that overflows",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "ffffffffffffffffff\r\nabc\r\n",
        Refused(&[400]),
    ),
    (
        "a chunk size with a sign",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        Refused(&[400]),
    ),
    (
        "a chunk that is longer than it says",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
        Refused(&[400]),
    ),
    (
        "a bare line feed in an extension",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        Refused(&[400]),
    ),
    // ── lines and names ──
    ("a folded field", "GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", "", Refused(&[400])),
    (
        "a space before the colon",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    (
        "a space before the name",
        "POST / HTTP/1.1\r\nHost: x\r\n Content-Length: 5\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    ("a null in a value", "GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", "", Refused(&[400])),
    (
        "a bare carriage return in a value",
        "GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    ("a space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", "", Refused(&[400])),
    ("an unknown version", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", "", Refused(&[400])),
    // ── who is asked ──
    ("no Host", "GET / HTTP/1.1\r\n\r\n", "", Refused(&[400])),
    ("two Hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", "", Refused(&[400])),
    ("a Host that is none", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", "", Refused(&[400])),
    (
        "a target for another host than Host",
        "GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    (
        "a target for another port than Host",
        "GET http://a.test:81/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "",
        Refused(&[400]),
    ),
    ("a target in absolute form without Host", "GET http://a.test/ HTTP/1.1\r\n\r\n", "", Refused(&[400])),
    (
        "a target in absolute form that agrees",
        "GET http://a.test/ HTTP/1.1\r\nHost: A.test:80\r\n\r\n",
        "",
        Taken { requests: 1, ends: false },
    ),
    ("CONNECT", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", "", Refused(&[405])),
    // ── what belongs to one connection ──
    (
        "a Connection that names the length",
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: Content-Length\r\nContent-Length: 3\r\n\r\n",
        "abc",
        Taken { requests: 1, ends: false },
    ),
    (
        "a Connection that names the host",
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Host\r\n\r\n",
        "",
        Taken { requests: 1, ends: false },
    ),
    (
        "an upgrade with a body that holds a request",
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 35\r\n\r\n",
        SMUGGLED,
        Taken { requests: 1, ends: false },
    ),
    (
        "HTTP/2's beginning in the middle of HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Taken { requests: 1, ends: true },
    ),
];

#[test]
fn nothing_has_two_readings() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], seen.target()));
    let tidegate = Tidegate::start(Web::new(backend.address));
    for (case, head, rest, then) in TABLE {
        let before = backend.count();
        let mut client = tidegate.client();
        client.send(format!("{head}{rest}"));
        let first = client.response();
        let ends = match then {
            Refused(statuses) => {
                assert!(statuses.contains(&first.status), "{case}: {}", first.head);
                true
            }
            Taken { ends, .. } => {
                assert_eq!(first.status, 200, "{case}");
                *ends
            }
        };
        // What comes now must be answered as a request of its own, or not at all.
        client.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n");
        if ends {
            // So that whoever waits for more gets to know that there is none; one that is closed already
            // cannot be closed again.
            let _closed = client.wire.socket().shutdown(Shutdown::Write);
        }
        let after = client.try_response_to("GET").filter(|response| response.status == 200);
        assert_eq!(
            after.as_ref().map(|response| response.text()),
            (!ends).then(|| "/next".to_owned()),
            "{case}"
        );
        let _closed = client.wire.socket().shutdown(Shutdown::Write);
        client.wire.wait_for_end();

        let seen = backend.requests();
        let requests = match then {
            Refused(_) => 0,
            Taken { requests, .. } => requests + usize::from(!ends),
        };
        let seen = &seen[before..];
        assert_eq!(seen.len(), requests, "{case}: {seen:#?}");
        for seen in seen {
            let lengths = seen.fields("content-length").len() + seen.fields("transfer-encoding").len();
            assert!(lengths <= 1 && seen.fields("host").len() == 1, "{case}: {}", seen.head);
            assert_ne!(seen.target(), "/smuggled", "{case}");
            assert_eq!(seen.fields("upgrade").len() + seen.fields("connection").len(), 0, "{case}");
        }
    }
    assert_eq!(get(tidegate.address(), "/after").text(), "/after", "no connection was left out of step");
}

#[test]
fn a_field_in_a_trailer_is_no_field_of_the_head() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], &seen.body));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: content-length, host, x-sum\r\n\r\n\
         3\r\nabc\r\n0\r\nContent-Length: 0\r\nHost: evil\r\nX-Sum: 1\r\n\r\n",
    );
    assert_eq!(client.response().text(), "abc");
    let seen = backend.only_request();
    let trailers = seen.trailers.to_ascii_lowercase();
    assert!(!trailers.contains("content-length") && !trailers.contains("host"), "{trailers}");
    assert_eq!(client.get("/").status, 200);
}
