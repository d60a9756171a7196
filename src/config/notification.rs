//! `[[notifications]]`: which people are told what happens to rollouts, and where.

use std::ops::RangeInclusive;

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    suggest::suggest,
    target::{self, Target, Written},
    template,
    written::{Section, Table, Text, count},
};
use crate::{model::template::Template, rollout::topic::Topic};

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// What they understand.
    pub kind: Kind,
    /// Where they are.
    pub target: Target,
    /// The services that they want to know of; nothing means all.
    pub services: Option<Vec<String>>,
    /// What they want to know of.
    pub topics: Vec<Topic>,
    /// How it is worded.
    pub template: Template,
    /// Most messages in a minute; nothing means as many as there are.
    pub max_per_minute: Option<u32>,
}

/// What somebody understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Slack's incoming webhooks, and what is compatible with them.
    Slack,
    /// Microsoft Teams' workflows.
    Teams,
    /// The fields of what has happened as JSON.
    Webhook,
    /// CloudEvents 1.0 as JSON.
    CloudEvents,
}

impl Kind {
    /// All of them, with the words for them.
    pub const ALL: [(&'static str, Self); 4] = [
        ("slack", Self::Slack),
        ("teams", Self::Teams),
        ("webhook", Self::Webhook),
        ("cloudevents", Self::CloudEvents),
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Whether people read it.
    fn is_chat(self) -> bool {
        matches!(self, Self::Slack | Self::Teams)
    }
}

/// The names that stand for what has happened.
pub const NAMES: [&str; 16] = [
    "service",
    "event",
    "message",
    "by",
    "reason",
    "because",
    "rollout",
    "stable",
    "canary",
    "backend",
    "phase",
    "step",
    "steps",
    "weight",
    "rollback_until",
    "time",
];

/// One of `[[notifications]]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNotification {
    kind: Option<Text>,
    url: Option<Text>,
    url_file: Option<Text>,
    ca_file: Option<Text>,
    headers_file: Option<Text>,
    services: Option<Vec<Text>>,
    events: Option<Vec<Text>>,
    template: Option<Text>,
    max_per_minute: Option<Spanned<i64>>,
}

impl Section for RawNotification {
    const HEADER: &'static str = "[[notifications]]";
}

/// What nobody wants to know of unless they say so.
const LEFT_OUT: [Topic; 3] = [Topic::Waiting, Topic::Baking, Topic::Drained];
const PER_MINUTE: RangeInclusive<u32> = 1..=1000;

/// Who is told; `services` are those that there are.
pub(super) fn lower(
    raw: Vec<Spanned<Table<RawNotification>>>,
    services: &[&str],
    report: &mut Report<'_>,
) -> Vec<Notification> {
    raw.into_iter().filter_map(|raw| lower_one(raw, services, report)).collect()
}

fn lower_one(
    raw: Spanned<Table<RawNotification>>,
    services: &[&str],
    report: &mut Report<'_>,
) -> Option<Notification> {
    let place = raw.span();
    let RawNotification {
        kind,
        url,
        url_file,
        ca_file,
        headers_file,
        services: wanted,
        events,
        template,
        max_per_minute,
    } = raw.into_inner().0;
    let kind = match kind {
        Some(written) => lower_kind(&written, report),
        None => {
            report
                .error(place.clone(), "this notification does not say what its receiver understands")
                .help("add `kind = \"slack\"`, `\"teams\"`, `\"webhook\"` or `\"cloudevents\"`");
            None
        }
    };
    let written = Written { url, url_file, ca_file, headers_file };
    let target = target::lower(written, place, "notification", report);
    for name in wanted.iter().flatten().filter(|name| !services.contains(&name.get_ref().as_str())) {
        let remedy = suggest(name.get_ref(), services, "services");
        report.error(name.span(), format!("there is no service `{}`", name.get_ref())).help_if(remedy);
    }
    let topics = match events {
        Some(events) => events.iter().filter_map(|written| lower_topic(written, report)).collect(),
        None => Topic::ALL.map(|(_, topic)| topic).into_iter().filter(|t| !LEFT_OUT.contains(t)).collect(),
    };
    let max_per_minute = match max_per_minute {
        Some(written) => count(&written, "max_per_minute", PER_MINUTE, report),
        None => kind.filter(|kind| kind.is_chat()).map(|_| 20),
    };
    let kind = kind?;
    if let Some(template) = template.as_ref().filter(|_| kind == Kind::CloudEvents) {
        report
            .error(template.span(), "`template` means nothing to `cloudevents`, which have no text")
            .help("remove it, or write `kind = \"webhook\"`");
    }
    let usual = match kind {
        Kind::Slack => "*{{ service }}*: {{ message }}{{ because }}",
        Kind::Teams => "**{{ service }}**: {{ message }}{{ because }}",
        Kind::Webhook | Kind::CloudEvents => "{{ service }}: {{ message }}{{ because }}",
    };
    let template = match template {
        Some(written) => template::lower(&written, &NAMES, report),
        None => Template::new(usual, &NAMES).ok(),
    };
    let services = wanted.map(|wanted| wanted.into_iter().map(Spanned::into_inner).collect());
    Some(Notification { kind, target: target?, services, topics, template: template?, max_per_minute })
}

fn lower_kind(written: &Text, report: &mut Report<'_>) -> Option<Kind> {
    let word = written.get_ref().as_str();
    let kind = Kind::ALL.iter().find(|(name, _)| *name == word).map(|(_, kind)| *kind);
    if kind.is_none() {
        let remedy = suggest(word, &Kind::ALL.map(|(name, _)| name), "kinds");
        report.error(written.span(), format!("`{word}` is not a kind of notification")).help_if(remedy);
    }
    kind
}

fn lower_topic(written: &Text, report: &mut Report<'_>) -> Option<Topic> {
    let word = written.get_ref().as_str();
    let topic = Topic::ALL.iter().find(|(name, _)| *name == word).map(|(_, topic)| *topic);
    if topic.is_none() {
        let remedy = suggest(word, &Topic::ALL.map(|(name, _)| name), "events");
        report.error(written.span(), format!("there is no event `{word}`")).help_if(remedy);
    }
    topic
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn written(keys: &str) -> String {
        format!("[[notifications]]\n{keys}")
    }

    #[test]
    fn chats_have_a_limit_and_everybody_is_spared_the_details() {
        for (name, kind) in Kind::ALL {
            let it =
                parsed(&written(&format!("kind = '{name}'\nurl = 'http://a/b'"))).notifications.remove(0);
            assert_eq!((it.kind, it.services), (kind, None));
            assert_eq!(it.max_per_minute, kind.is_chat().then_some(20));
            assert_eq!(it.topics.len(), Topic::ALL.len() - LEFT_OUT.len());
        }
        let keys =
            "kind = 'slack'\nurl = 'http://a'\nevents = ['baking']\nservices = ['web']\nmax_per_minute = 1";
        let it = parsed(&written(keys)).notifications.remove(0);
        assert_eq!((it.topics, it.max_per_minute), (vec![Topic::Baking], Some(1)));
        assert_eq!(it.services, Some(vec!["web".to_owned()]));
    }

    #[test]
    fn every_mistake_is_named() {
        let slack = "kind = 'slack'\nurl = 'http://a'\n";
        for (keys, problem) in [
            ("url = 'http://a'".to_owned(), "this notification does not say what its receiver understands"),
            ("kind = 'discord'\nurl = 'http://a'".to_owned(), "`discord` is not a kind of notification"),
            ("kind = 'slack'".to_owned(), "this notification does not say where it goes"),
            (format!("{slack}services = ['wep']"), "there is no service `wep`"),
            (format!("{slack}events = ['steped']"), "there is no event `steped`"),
            (format!("{slack}template = '{{{{ text }}}}'"), "`text` stands for nothing"),
            (format!("{slack}template = '{{{{ message'"), "a `{{` in this template is not closed"),
            (format!("{slack}max_per_minute = 0"), "`max_per_minute` cannot be 0"),
            (
                "kind = 'cloudevents'\nurl = 'http://a'\ntemplate = 'a'".to_owned(),
                "`template` means nothing to `cloudevents`, which have no text",
            ),
        ] {
            assert_eq!(errors(&written(&keys)), [problem]);
        }
    }
}
