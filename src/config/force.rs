//! `[[services.NAME.force]]` and `[services.NAME.preview]`: what decides a request's role before any
//! weight does.

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{
    condition::{self, Subject, WrittenTest},
    host,
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text},
};
use crate::{
    model::role::Role,
    routing::force::{By, Force, Networks, Overrides, Preview},
};

/// `[[services.NAME.force]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawForce {
    role: Option<Text>,
    header: Option<WrittenTest>,
    cookie: Option<WrittenTest>,
    query: Option<WrittenTest>,
    from: Option<Spanned<Vec<Text>>>,
}

impl Section for RawForce {
    const HEADER: &'static str = "[[services.NAME.force]]";
}

/// `[services.NAME.preview]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPreview {
    hostnames: Option<Vec<Text>>,
    header: Option<WrittenTest>,
    from: Option<Spanned<Vec<Text>>>,
}

impl Section for RawPreview {
    const HEADER: &'static str = "[services.NAME.preview]";
}

/// What decides the role of some requests; nothing if nothing does.
pub(super) fn lower(
    force: Vec<Spanned<Table<RawForce>>>,
    preview: Option<Spanned<Table<RawPreview>>>,
    report: &mut Report<'_>,
) -> Option<Overrides> {
    let rules = force.into_iter().filter_map(|raw| lower_force(raw, report)).collect();
    let preview = preview.and_then(|raw| lower_preview(raw, report));
    Some(Overrides::new(preview, rules)).filter(|overrides| !overrides.is_empty())
}

fn lower_force(raw: Spanned<Table<RawForce>>, report: &mut Report<'_>) -> Option<Force> {
    let place = raw.span();
    let RawForce { role, header, cookie, query, from } = raw.into_inner().0;
    let role = match role {
        Some(written) => lower_role(&written, report),
        None => {
            report
                .error(place.clone(), "this rule forces no role")
                .help("add `role = \"canary\"` or `role = \"stable\"`");
            None
        }
    };
    let by = match (header, cookie, query) {
        (Some(raw), None, None) => condition::header(raw, report).map(By::Header),
        (None, Some(raw), None) => condition::pair(raw, Subject::Cookie, report).map(By::Cookie),
        (None, None, Some(raw)) => condition::pair(raw, Subject::Parameter, report).map(By::Query),
        _ => {
            report
                .error(place, "a rule goes by one of `header`, `cookie` and `query`")
                .help("write one, such as `header = { name = \"x-version\", value = \"canary\" }`");
            None
        }
    };
    let from = networks(from, report);
    Some(Force { role: role?, by: by?, from })
}

fn lower_role(written: &Text, report: &mut Report<'_>) -> Option<Role> {
    let text = written.get_ref();
    let role = Role::ALL.into_iter().find(|role| role.to_string() == *text);
    if role.is_none() {
        let remedy = suggest(text, &["stable", "canary"], "roles");
        report.error(written.span(), format!("`{text}` is not a role")).help_if(remedy);
    }
    role
}

fn lower_preview(raw: Spanned<Table<RawPreview>>, report: &mut Report<'_>) -> Option<Preview> {
    let place = raw.span();
    let RawPreview { hostnames, header, from } = raw.into_inner().0;
    let hostnames = hostnames.unwrap_or_default();
    if hostnames.is_empty() && header.is_none() {
        report.error(place, "nobody can ask for this preview").help(
            "add `hostnames = [\"preview.app.example\"]` or `header = { name = \"…\", value = \"…\" }`",
        );
        return None;
    }
    let hostnames = hostnames.iter().filter_map(|written| {
        let host = host::parse(written.get_ref());
        host.inspect_err(|fault| {
            let problem = format!("`{}` is not a host name", written.get_ref());
            report.error(written.span(), problem).help(fault.0);
        })
        .ok()
    });
    let hostnames = hostnames.collect();
    let header = header.and_then(|raw| condition::header(raw, report));
    Some(Preview { hostnames, header, from: networks(from, report) })
}

/// Networks of clients; all of them where nothing is written.
fn networks(written: Option<Spanned<Vec<Text>>>, report: &mut Report<'_>) -> Networks {
    let Some(written) = written else { return Networks::default() };
    if written.get_ref().is_empty() {
        report
            .error(written.span(), "`from` is empty, so this would apply to nobody")
            .help("leave `from` out to let everybody in, or name at least one network");
    }
    let written = written.into_inner().into_iter();
    Networks(Some(written.filter_map(|written| network(&written, report)).collect()))
}

/// A network, or an address as a network of its own.
fn network(written: &Text, report: &mut Report<'_>) -> Option<IpNet> {
    let text = written.get_ref();
    let network = text.parse::<IpNet>().ok();
    let network = network.or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from));
    let remedy = match network {
        None => "write an address, or a network such as `\"10.0.0.0/8\"` or `\"fd00::/8\"`".to_owned(),
        Some(network) if network.trunc() != network => {
            format!("write the network's own address: `\"{}\"`", network.trunc())
        }
        Some(network) => return Some(network),
    };
    report.error(written.span(), format!("`{text}` is not a network")).help(remedy);
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    fn force(keys: &str) -> String {
        format!("[[services.web.force]]\n{keys}")
    }

    #[test]
    fn nothing_is_forced_unless_asked_for() {
        assert_eq!(parsed("").services[0].overrides, None);
        let rule =
            force("role = 'canary'\nheader = { name = 'x-a', value = '1' }\nfrom = ['10.0.0.0/8', '::1']");
        assert!(parsed(&rule).services[0].overrides.is_some());
        let preview = "[services.web.preview]\nhostnames = ['Preview.Example']";
        let overrides = parsed(preview).services.remove(0).overrides.unwrap();
        assert_eq!(overrides.preview.unwrap().hostnames, ["preview.example"]);
    }

    #[test]
    fn a_rule_has_a_role_and_one_test() {
        let header = "header = { name = 'x-a', value = '1' }";
        for (bad, problem) in [
            (header.to_owned(), "this rule forces no role"),
            (format!("role = 'canry'\n{header}"), "`canry` is not a role"),
            ("role = 'canary'".to_owned(), "a rule goes by one of `header`, `cookie` and `query`"),
            (
                format!("role = 'canary'\n{header}\ncookie = {{ name = 'a', present = true }}"),
                "a rule goes by one of `header`, `cookie` and `query`",
            ),
            (
                format!("role = 'canary'\n{header}\nfrom = []"),
                "`from` is empty, so this would apply to nobody",
            ),
            (format!("role = 'canary'\n{header}\nfrom = ['home']"), "`home` is not a network"),
            (format!("role = 'canary'\n{header}\nfrom = ['10.0.0.1/8']"), "`10.0.0.1/8` is not a network"),
        ] {
            assert_eq!(errors(&force(&bad)), [problem]);
        }
        assert_eq!(errors("[services.web.preview]"), ["nobody can ask for this preview"]);
        assert_eq!(errors("[services.web.preview]\nhostnames = ['a:80']"), ["`a:80` is not a host name"]);
    }
}
