//! A file, or its text, to a configuration or to what is wrong with it. The only I/O of this
//! module, with that of `super::files`.
//!
//! Deliberately absent: a directory of files. It is refused in words rather than read by guess.

use std::{fs, io::ErrorKind, path::Path};

use super::{
    Config, credentials,
    diagnostic::{Diagnostic, Severity},
    document, files,
    report::Report,
    structure,
};

/// A configuration and its warnings, or its errors, in the order of the file.
pub type Loaded = Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>>;

/// Reads a file, and the certificates, keys and credentials that it names.
///
/// # Errors
/// When the file cannot be read, or as [`parse`].
pub fn load(path: &Path) -> Loaded {
    let name = path.display().to_string();
    if path.is_dir() {
        return unreadable(
            &name,
            "this is a directory, and reading a directory of files is not supported yet",
            format!("name one file, such as `{}`", path.join("tidegate.toml").display()),
        );
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            return match error.kind() {
                ErrorKind::NotFound => unreadable(
                    &name,
                    "there is no such file",
                    "name an existing file; a relative path begins at the working directory".to_owned(),
                ),
                ErrorKind::PermissionDenied => unreadable(
                    &name,
                    "this file may not be read: permission denied",
                    "let the user that the proxy runs as read it".to_owned(),
                ),
                _ => unreadable(
                    &name,
                    &format!("this file cannot be read: {error}"),
                    "name a regular file".to_owned(),
                ),
            };
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => {
            let (config, warnings) = understand(&name, &text, files::check)?;
            credentials::read(config, warnings)
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes());
            let mut report = Report::new(&name, &text);
            report.error(at..at, "this is not UTF-8 text").help("save the file in UTF-8");
            Err(report.into_sorted(Severity::Error))
        }
    }
}

/// Reads the text of a configuration; `file_name` is only what diagnostics call it. No other file is
/// looked at.
///
/// # Errors
/// The first fault of structure (syntax, unknown key, wrong type), or else every fault of meaning.
pub fn parse(file_name: &str, text: &str) -> Loaded {
    understand(file_name, text, |_| ())
}

fn understand(file_name: &str, text: &str, look: impl Fn(&mut Report<'_>)) -> Loaded {
    let mut report = Report::new(file_name, text);
    let config = structure::read(text, &mut report).map(|raw| document::lower(raw, &mut report));
    // What a text with faults names may not be what was meant.
    if !report.has_errors() {
        look(&mut report);
    }
    match config {
        Some(config) if !report.has_errors() => Ok((config, report.into_sorted(Severity::Warning))),
        _ => Err(report.into_sorted(Severity::Error)),
    }
}

fn unreadable(name: &str, problem: &str, remedy: String) -> Loaded {
    let mut report = Report::new(name, "");
    report.error_in_file(problem).help(remedy);
    Err(report.into_sorted(Severity::Error))
}
