//! What the sections' tests share: the smallest configuration, and what is said about it with more
//! settings after it.

use super::{
    Config,
    diagnostic::{Diagnostic, render},
    load::parse,
};

/// The smallest configuration: one listener, one route, one service with one backend.
pub(super) const MINIMAL: &str = "[[listeners]]
address = '0.0.0.0:8080'
[[routes]]
service = 'web'
[services.web]
stable = 'v1'
[services.web.backends.v1]
endpoints = ['http://127.0.0.1:9001']
";

/// What the smallest configuration means with `more` after it.
pub(super) fn parsed(more: &str) -> Config {
    parsed_of(&format!("{MINIMAL}{more}"))
}

/// What a configuration means.
pub(super) fn parsed_of(text: &str) -> Config {
    match parse("tidegate.toml", text) {
        Ok((config, _)) => config,
        Err(errors) => panic!("{}", render(&errors)),
    }
}

/// The problems of the smallest configuration with `more` after it, in the order of the text.
pub(super) fn errors(more: &str) -> Vec<String> {
    errors_of(&format!("{MINIMAL}{more}"))
}

/// The problems of a configuration.
pub(super) fn errors_of(text: &str) -> Vec<String> {
    problems(parse("tidegate.toml", text).err().unwrap_or_default())
}

/// What the smallest configuration with `more` after it is warned of.
pub(super) fn warnings(more: &str) -> Vec<String> {
    match parse("tidegate.toml", &format!("{MINIMAL}{more}")) {
        Ok((_, warnings)) => problems(warnings),
        Err(errors) => panic!("{}", render(&errors)),
    }
}

fn problems(diagnostics: Vec<Diagnostic>) -> Vec<String> {
    diagnostics.into_iter().map(|diagnostic| diagnostic.problem).collect()
}
