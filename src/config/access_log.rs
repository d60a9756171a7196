//! `[access_log]`: what is written about each exchange, and where to.

use serde::Deserialize;
use toml::Spanned;

use super::{
    AccessLog, LogFormat, LogOutput,
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text},
};
use crate::model::weight::Weight;

const FORMATS: [&str; 2] = ["json", "text"];

/// `[access_log]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccessLog {
    format: Option<Text>,
    output: Option<Text>,
    sample: Option<Spanned<f64>>,
}

impl Section for RawAccessLog {
    const HEADER: &'static str = "[access_log]";
}

/// The access log. What is wrong stands as its default.
pub(super) fn lower(raw: Table<RawAccessLog>, report: &mut Report<'_>) -> AccessLog {
    let RawAccessLog { format, output, sample } = raw.0;
    let default = AccessLog::default();
    AccessLog {
        format: format.and_then(|written| lower_format(&written, report)).unwrap_or(default.format),
        output: output.and_then(|written| lower_output(&written, report)).unwrap_or(default.output),
        sample: sample.and_then(|written| lower_sample(&written, report)).unwrap_or(default.sample),
    }
}

fn lower_format(written: &Text, report: &mut Report<'_>) -> Option<LogFormat> {
    match written.get_ref().as_str() {
        "json" => Some(LogFormat::Json),
        "text" => Some(LogFormat::Text),
        other => {
            let remedy = suggest(other, &FORMATS, "formats");
            report
                .error(written.span(), format!("`{other}` is not a format of the access log"))
                .help_if(remedy);
            None
        }
    }
}

/// A file's path has a `/`, so that a slip in `stdout` does not become a file of that name.
fn lower_output(written: &Text, report: &mut Report<'_>) -> Option<LogOutput> {
    let output = written.get_ref();
    if output == "stdout" {
        return Some(LogOutput::Stdout);
    }
    if output.contains('/') && !output.ends_with('/') && !output.contains('\0') {
        return Some(LogOutput::File(output.into()));
    }
    report.error(written.span(), format!("`{output}` is neither `stdout` nor the path of a file")).help(
        "write `\"stdout\"`, or a path such as `\"/var/log/tidegate/access.log\"` or `\"./access.log\"`",
    );
    None
}

fn lower_sample(written: &Spanned<f64>, report: &mut Report<'_>) -> Option<Weight> {
    let share = *written.get_ref();
    let sample = Weight::from_percent(share * 100.0).ok().filter(|sample| *sample > Weight::ZERO);
    if sample.is_none() {
        report.error(written.span(), format!("`sample` cannot be {share}")).help(
            "write a share from 0.0001 to 1 with at most four decimals; for no log, remove `[access_log]`",
        );
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn log(keys: &str) -> AccessLog {
        parsed(&format!("[access_log]\n{keys}")).access_log.unwrap()
    }

    #[test]
    fn there_is_none_unless_asked_for_and_then_every_key_has_a_default() {
        assert_eq!(parsed("").access_log, None);
        assert_eq!(log(""), AccessLog::default());
        let default = log("format = 'json'\noutput = 'stdout'\nsample = 1");
        assert_eq!(default, AccessLog::default());
    }

    #[test]
    fn every_key_is_heeded() {
        let log = log("format = 'text'\noutput = './access.log'\nsample = 0.0125");
        let output = LogOutput::File("./access.log".into());
        let sample = Weight::from_percent(1.25).unwrap();
        assert_eq!(log, AccessLog { format: LogFormat::Text, output, sample });
    }

    #[test]
    fn every_mistake_is_named() {
        for (keys, problem) in [
            ("format = 'jsno'", "`jsno` is not a format of the access log"),
            ("output = 'stdot'", "`stdot` is neither `stdout` nor the path of a file"),
            ("output = ''", "`` is neither `stdout` nor the path of a file"),
            ("output = '/var/log/'", "`/var/log/` is neither `stdout` nor the path of a file"),
            ("sample = 0", "`sample` cannot be 0"),
            ("sample = 1.5", "`sample` cannot be 1.5"),
            ("sample = 0.00001", "`sample` cannot be 0.00001"),
            ("sample = nan", "`sample` cannot be NaN"),
        ] {
            assert_eq!(errors(&format!("[access_log]\n{keys}")), [problem]);
        }
    }
}
