//! Instant queries of Prometheus' HTTP API (`/api/v1/query`).

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::http::Client;
use crate::controller::hook::shown;

/// An answer.
#[derive(Debug, Deserialize)]
struct Answer {
    status: String,
    error: Option<String>,
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Scalar(Point),
    Vector(Vec<Series>),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Series {
    value: Point,
}

/// A time and a value, which is text so that it may be `NaN` or `+Inf`.
type Point = (f64, String);

/// The value of a query; nothing if there is no series, or it has no number. `times` are how long it may take,
/// and how old a sample may be.
///
/// # Errors
/// When there is no answer, or it is not one number.
pub(super) async fn query(
    client: &Client,
    address: &str,
    query: &str,
    (timeout, max_age): (Duration, Duration),
) -> anyhow::Result<Option<f64>> {
    let parameters = [("query", query), ("timeout", &millis(timeout)), ("lookback_delta", &millis(max_age))];
    let parameters = parameters.map(|(name, value)| format!("{name}={}", encoded(value)));
    let url = format!("{address}/api/v1/query?{}", parameters.join("&"));
    let (status, body) = client.get(&url).await?;
    let answer =
        serde_json::from_slice(&body).with_context(|| format!("status {status}, and not the API's"))?;
    value(answer)
}

fn value(answer: Answer) -> anyhow::Result<Option<f64>> {
    let Answer { status, error, data } = answer;
    if status != "success" {
        bail!("{}", shown(error.unwrap_or(status).as_bytes()));
    }
    let text = match data {
        Some(Data::Scalar((_, value))) => value,
        Some(Data::Vector(series)) => match <[_; 1]>::try_from(series) {
            Ok([Series { value: (_, value) }]) => value,
            Err(series) if series.is_empty() => return Ok(None),
            Err(series) => bail!("{} series where one is wanted: aggregate them", series.len()),
        },
        Some(Data::Matrix(_) | Data::String(_)) | None => bail!("no instant vector and no scalar"),
    };
    let value: f64 = text
        .trim_start_matches('+')
        .parse()
        .with_context(|| format!("`{}` is no number", shown(text.as_bytes())))?;
    Ok((!value.is_nan()).then_some(value))
}

/// A time as Prometheus writes it.
fn millis(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// Percent-encoded as a value in a query (RFC 3986: all but what is unreserved).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<f64>, String> {
        value(serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
    }

    fn vector(values: &[&str]) -> String {
        let series: Vec<_> =
            values.iter().map(|v| format!(r#"{{"metric":{{}},"value":[1.5,"{v}"]}}"#)).collect();
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{}]}}}}"#, series.join(","))
    }

    #[test]
    fn one_number_is_wanted() {
        assert_eq!(read(&vector(&["1.5e9"])), Ok(Some(1.5e9)));
        assert_eq!(read(&vector(&["+Inf"])), Ok(Some(f64::INFINITY)));
        assert_eq!((read(&vector(&[])), read(&vector(&["NaN"]))), (Ok(None), Ok(None)));
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"-2"]}}"#;
        assert_eq!(read(scalar), Ok(Some(-2.0)));
        let several = read(&vector(&["1", "2"]));
        assert_eq!(several, Err("2 series where one is wanted: aggregate them".to_owned()));
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert_eq!(read(matrix), Err("no instant vector and no scalar".to_owned()));
        let error = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        assert_eq!(read(error), Err("parse error".to_owned()));
        // It goes to terminals.
        let error = format!(r#"{{"status":"error","error":"\u001b[2Jno{}"}}"#, "!".repeat(1000));
        let said = read(&error).unwrap_err();
        assert!(said.starts_with("[2Jno!") && said.len() == 200, "{said}");
        assert_eq!(read(&vector(&["\\u001b[2J"])), Err("`[2J` is no number".to_owned()));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("a{b=~\"c.*\"}[5m] + ü"), "a%7Bb%3D~%22c.%2A%22%7D%5B5m%5D%20%2B%20%C3%BC");
    }
}
