//! Texts with names in double braces, wherever they may be written.

use super::{report::Report, suggest::suggest, written::Text};
use crate::model::template::{Template, TemplateError};

/// The text with these names; reports what is wrong with it.
pub(super) fn lower(written: &Text, names: &[&'static str], report: &mut Report<'_>) -> Option<Template> {
    let template = Template::new(written.get_ref(), names);
    if let Err(error) = &template {
        let remedy = match error {
            TemplateError::Unknown(name) => suggest(name, names, "names"),
            TemplateError::Unclosed => Some("close it with `}}`".to_owned()),
        };
        report.error(written.span(), error.to_string()).help_if(remedy);
    }
    template.ok()
}
