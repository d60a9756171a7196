//! Records to lines. Pure, and safe for whoever reads the log: a line is printable ASCII, whatever a
//! client has sent, so that nothing in it ends the line, begins another, or means something to a
//! terminal.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
    time::{Duration, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};

use super::record::{Record, Text};
use crate::{config::LogFormat, model::time::Timestamp};

/// The last millisecond that RFC 3339 has a form for: the end of the year 9999.
const LAST_MILLISECOND: u64 = 253_402_300_799_999;

/// Adds a record's line, with its end.
pub fn line(format: LogFormat, record: &Record, out: &mut Vec<u8>) {
    let written = match format {
        LogFormat::Json => json(record, out),
        LogFormat::Text => text(record, out),
    };
    written.expect("memory takes whatever is written");
    out.push(b'\n');
}

/// The fields, in the order of the line.
#[derive(Serialize)]
struct Line<'r> {
    #[serde(serialize_with = "rfc3339")]
    time: Timestamp,
    client: std::net::IpAddr,
    method: Option<Cow<'r, str>>,
    host: Option<Cow<'r, str>>,
    path: Option<Cow<'r, str>>,
    protocol: &'static str,
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    head_ms: Option<f64>,
    service: Option<Cow<'r, str>>,
    backend: Option<Cow<'r, str>>,
    role: Option<&'static str>,
    assignment: Option<&'static str>,
    endpoint: Option<Cow<'r, str>>,
    attempts: u32,
    local_reply: Option<&'static str>,
    outcome: Option<&'static str>,
    user_agent: Option<Cow<'r, str>>,
    referer: Option<Cow<'r, str>>,
    trace_id: Option<String>,
}

fn json(record: &Record, out: &mut Vec<u8>) -> io::Result<()> {
    let text = |text| record.texts.get(text).map(String::from_utf8_lossy);
    let line = Line {
        time: record.at,
        client: record.client,
        method: text(Text::Method),
        host: text(Text::Host),
        path: text(Text::Path),
        protocol: record.protocol,
        status: record.status,
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        duration_ms: millis(record.duration),
        head_ms: record.head_after.map(millis),
        service: text(Text::Service),
        backend: text(Text::Backend),
        role: record.role,
        assignment: record.assignment,
        endpoint: text(Text::Endpoint),
        attempts: record.attempts,
        local_reply: record.local_reply,
        outcome: record.outcome,
        user_agent: text(Text::UserAgent),
        referer: text(Text::Referer),
        trace_id: record.trace_id.map(hex),
    };
    line.serialize(&mut serde_json::Serializer::with_formatter(out, Ascii)).map_err(io::Error::from)
}

fn text(record: &Record, out: &mut Vec<u8>) -> io::Result<()> {
    let Record { at, client, protocol, status, bytes_in, bytes_out, duration, head_after, .. } = record;
    write!(out, "time={} client={client}", time(*at))?;
    for (key, text) in [("method", Text::Method), ("host", Text::Host), ("path", Text::Path)] {
        quoted(key, record.texts.get(text), out)?;
    }
    write!(out, " protocol={protocol} status={}", or_dash(*status))?;
    write!(out, " bytes_in={bytes_in} bytes_out={bytes_out} duration_ms={}", millis(*duration))?;
    write!(out, " head_ms={}", or_dash(head_after.map(millis)))?;
    quoted("service", record.texts.get(Text::Service), out)?;
    quoted("backend", record.texts.get(Text::Backend), out)?;
    write!(out, " role={} assignment={}", or_dash(record.role), or_dash(record.assignment))?;
    quoted("endpoint", record.texts.get(Text::Endpoint), out)?;
    write!(out, " attempts={}", record.attempts)?;
    write!(out, " local_reply={} outcome={}", or_dash(record.local_reply), or_dash(record.outcome))?;
    quoted("user_agent", record.texts.get(Text::UserAgent), out)?;
    quoted("referer", record.texts.get(Text::Referer), out)?;
    write!(out, " trace_id={}", or_dash(record.trace_id.map(hex)))
}

/// A trace's id as `traceparent` has it.
fn hex(trace_id: u128) -> String {
    format!("{trace_id:032x}")
}

/// ` key="text"` with all but printable ASCII as `\xHH`, and a backslash before `"` and `\`.
fn quoted(key: &str, text: Option<&[u8]>, out: &mut Vec<u8>) -> io::Result<()> {
    let Some(text) = text else { return write!(out, " {key}=-") };
    write!(out, " {key}=\"")?;
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            b' '..=b'~' => out.push(*byte),
            _ => write!(out, "\\x{byte:02x}")?,
        }
    }
    out.push(b'"');
    Ok(())
}

fn or_dash(value: Option<impl fmt::Display>) -> impl fmt::Display {
    fmt::from_fn(move |f| match &value {
        Some(value) => value.fmt(f),
        None => f.write_str("-"),
    })
}

/// Milliseconds to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn time(at: Timestamp) -> impl fmt::Display {
    let millis = at.as_millis().min(LAST_MILLISECOND);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis))
}

fn rfc3339<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&time(*at))
}

/// JSON with everything beyond printable ASCII as `\uHHHH`. By itself serde_json escapes what would
/// break JSON; beyond ASCII there is more that ends lines for some reader (U+0085, U+2028), speaks to
/// terminals (U+009B) or turns text round (U+202E).
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let is_plain = |c: char| (' '..='~').contains(&c);
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !is_plain(c)) {
            let (plain, odd) = rest.split_at(at);
            out.write_all(plain.as_bytes())?;
            let mut after = odd.chars();
            if let Some(c) = after.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            rest = after.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
pub(super) mod samples {
    //! Records for tests.

    use super::*;
    use crate::access_log::record::Texts;

    /// A request that a backend has answered.
    pub(in crate::access_log) fn record() -> Record {
        let mut texts = Texts::default();
        for (text, bytes) in [
            (Text::Method, "GET"),
            (Text::Host, "web.test"),
            (Text::Path, "/a?b=c"),
            (Text::UserAgent, "curl/8"),
            (Text::Service, "web"),
            (Text::Backend, "v1"),
            (Text::Endpoint, "127.0.0.1:9001"),
        ] {
            texts.set(text, bytes.as_bytes());
        }
        Record {
            at: Timestamp::from_millis(1_764_046_453_007),
            client: [192, 0, 2, 1].into(),
            protocol: "HTTP/1.1",
            status: Some(200),
            bytes_in: 0,
            bytes_out: 5,
            duration: Duration::from_micros(12_345),
            head_after: Some(Duration::from_millis(12)),
            role: Some("stable"),
            assignment: Some("weight"),
            attempts: 1,
            local_reply: None,
            outcome: Some("2xx"),
            trace_id: None,
            texts,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{samples::record, *};
    use crate::access_log::record::{LONGEST_TEXT, Texts};

    fn written(format: LogFormat, record: &Record) -> String {
        let mut out = Vec::new();
        line(format, record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_has_every_field_in_a_fixed_order() {
        assert_eq!(
            written(LogFormat::Json, &record()),
            concat!(
                r#"{"time":"2025-11-25T04:54:13.007Z","client":"192.0.2.1","method":"GET","host":"web.test","#,
                r#""path":"/a?b=c","protocol":"HTTP/1.1","status":200,"bytes_in":0,"bytes_out":5,"#,
                r#""duration_ms":12.345,"head_ms":12.0,"service":"web","backend":"v1","role":"stable","#,
                r#""assignment":"weight","endpoint":"127.0.0.1:9001","attempts":1,"local_reply":null,"#,
                r#""outcome":"2xx","user_agent":"curl/8","referer":null,"trace_id":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn text_has_the_same_fields() {
        assert_eq!(
            written(LogFormat::Text, &record()),
            concat!(
                r#"time=2025-11-25T04:54:13.007Z client=192.0.2.1 method="GET" host="web.test" path="/a?b=c" "#,
                "protocol=HTTP/1.1 status=200 bytes_in=0 bytes_out=5 duration_ms=12.345 head_ms=12 ",
                r#"service="web" backend="v1" role=stable assignment=weight endpoint="127.0.0.1:9001" "#,
                r#"attempts=1 local_reply=- outcome=2xx user_agent="curl/8" referer=- trace_id=-"#,
                "\n"
            )
        );
    }

    #[test]
    fn times_beyond_the_calendar_are_its_end() {
        for millis in [LAST_MILLISECOND, LAST_MILLISECOND + 1, u64::MAX] {
            let at = Timestamp::from_millis(millis);
            assert_eq!(time(at).to_string(), "9999-12-31T23:59:59.999Z");
        }
    }

    /// What a client would write to have a line of its own.
    fn evil() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<String>().prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..60),
            prop::collection::vec(
                prop::sample::select(b"\"\\\n\r\t\0\x1b{}=, \x7f\x85\xe2\x80\xa8".to_vec()),
                0..20
            ),
            any::<u8>().prop_map(|byte| vec![byte; LONGEST_TEXT + 1]),
        ]
    }

    fn with(texts: &[Vec<u8>]) -> Record {
        let mut record = Record { texts: Texts::default(), ..record() };
        for (text, bytes) in Text::ALL.iter().zip(texts) {
            record.texts.set(*text, bytes);
        }
        record
    }

    /// The texts of a line of text, escapes undone.
    fn unquote(line: &str, key: &str) -> Vec<u8> {
        let begin = line.find(&format!(" {key}=\"")).unwrap() + key.len() + 3;
        let mut bytes = line.as_bytes()[begin..].iter().copied();
        let mut text = Vec::new();
        loop {
            match bytes.next().unwrap() {
                b'"' => return text,
                b'\\' => match bytes.next().unwrap() {
                    b'x' => {
                        let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                        text.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                    }
                    escaped => text.push(escaped),
                },
                plain => text.push(plain),
            }
        }
    }

    const JSON_KEYS: [&str; 8] =
        ["method", "host", "path", "user_agent", "referer", "service", "backend", "endpoint"];

    fn is_one_line(line: &str) -> bool {
        let body = line.strip_suffix('\n').unwrap();
        body.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    }

    proptest! {
        #[test]
        fn json_is_one_line_that_gives_back_what_was_sent(texts in prop::collection::vec(evil(), 8)) {
            let line = written(LogFormat::Json, &with(&texts));
            prop_assert!(is_one_line(&line), "{line:?}");
            let parsed: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(parsed.as_object().unwrap().len(), 22);
            for (key, text) in JSON_KEYS.iter().zip(&texts) {
                let kept = &text[..text.len().min(LONGEST_TEXT)];
                prop_assert_eq!(parsed[key].as_str().unwrap(), String::from_utf8_lossy(kept));
            }
        }

        #[test]
        fn text_is_one_line_that_gives_back_what_was_sent(texts in prop::collection::vec(evil(), 8)) {
            // One at a time, so that no other text can look like the key that is looked for.
            for (at, text) in texts.iter().enumerate() {
                let mut record = Record { texts: Texts::default(), ..record() };
                record.texts.set(Text::ALL[at], text);
                let line = written(LogFormat::Text, &record);
                prop_assert!(is_one_line(&line), "{line:?}");
                let kept = &text[..text.len().min(LONGEST_TEXT)];
                prop_assert_eq!(unquote(&line, JSON_KEYS[at]), kept);
            }
        }
    }
}
