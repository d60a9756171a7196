//! `[[services.NAME.rollout.hooks]]`: who is asked before a rollout goes on, and who is told.

use std::{fmt, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{
    report::Report,
    suggest::suggest,
    target::{self, Target, Written},
    written::{Section, TIMEOUT, Table, Text, Time, count, time_or},
};

/// Somebody who is asked or told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// What it is called (default: its host, or its program).
    pub name: String,
    /// When.
    pub at: At,
    /// Whether the rollout waits for the answer.
    pub is_blocking: bool,
    /// How.
    pub call: Call,
    /// Longest time that one try may take (default 10 s).
    pub timeout: Duration,
    /// Tries beyond the first (default 0).
    pub retries: u32,
    /// Longest time that all tries together may take (default 1 min).
    pub deadline: Duration,
}

/// When somebody is asked or told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    /// Before the first user gets to the canary.
    PreRollout,
    /// Before a step is left for the next one.
    Step,
    /// Before the canary gets everything.
    PrePromotion,
    /// When it has got everything.
    PostPromotion,
    /// When it goes back.
    Rollback,
    /// When a backend may be taken away.
    Drained,
    /// Whatever happens.
    Event,
}

/// How somebody is asked or told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// By a POST.
    Http {
        /// To whom.
        target: Target,
        /// A file with the secret that the body is signed with.
        secret: Option<PathBuf>,
    },
    /// By a program and its arguments; at least the program.
    Exec(Vec<String>),
}

impl At {
    /// All of them, with the words for them.
    pub const ALL: [(&'static str, Self); 7] = [
        ("pre-rollout", Self::PreRollout),
        ("step", Self::Step),
        ("pre-promotion", Self::PrePromotion),
        ("post-promotion", Self::PostPromotion),
        ("rollback", Self::Rollback),
        ("drained", Self::Drained),
        ("event", Self::Event),
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, at)| *at == self).map_or("", |(name, _)| name)
    }

    /// Whether a rollout may wait there.
    pub fn can_block(self) -> bool {
        matches!(self, Self::PreRollout | Self::Step | Self::PrePromotion)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const RETRIES: RangeInclusive<u32> = 0..=100;

/// One of `[[services.NAME.rollout.hooks]]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    at: Option<Text>,
    name: Option<Text>,
    url: Option<Text>,
    url_file: Option<Text>,
    ca_file: Option<Text>,
    secret_file: Option<Text>,
    headers_file: Option<Text>,
    exec: Option<Spanned<Vec<Text>>>,
    blocking: Option<Spanned<bool>>,
    timeout: Option<Time>,
    retries: Option<Spanned<i64>>,
    deadline: Option<Time>,
}

impl Section for RawHook {
    const HEADER: &'static str = "[[services.NAME.rollout.hooks]]";
}

/// `[hooks]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHooks {
    allow_exec: Option<bool>,
}

impl Section for RawHooks {
    const HEADER: &'static str = "[hooks]";
}

impl RawHooks {
    /// Whether hooks may be programs.
    pub(super) fn allows_exec(&self) -> bool {
        self.allow_exec.unwrap_or(false)
    }
}

/// Who is asked, and who is told.
pub(super) fn lower(
    raw: Vec<Spanned<Table<RawHook>>>,
    allow_exec: bool,
    report: &mut Report<'_>,
) -> Vec<Hook> {
    raw.into_iter().filter_map(|raw| lower_one(raw, allow_exec, report)).collect()
}

fn lower_one(raw: Spanned<Table<RawHook>>, allow_exec: bool, report: &mut Report<'_>) -> Option<Hook> {
    let place = raw.span();
    let RawHook {
        at,
        name,
        url,
        url_file,
        ca_file,
        secret_file,
        headers_file,
        exec,
        blocking,
        timeout,
        retries,
        deadline,
    } = raw.into_inner().0;
    let at = match at {
        Some(written) => lower_at(&written, report),
        None => {
            report
                .error(place.clone(), "this hook does not say when it is called")
                .help("add `at = \"pre-rollout\"`, `\"step\"`, `\"pre-promotion\"`, `\"post-promotion\"`, `\"rollback\"`, `\"drained\"` or `\"event\"`");
            None
        }
    };
    let is_blocking = blocking.as_ref().map(|written| *written.get_ref());
    if let (Some(at), Some(written)) = (at.filter(|at| !at.can_block()), &blocking)
        && *written.get_ref()
    {
        report
            .error(written.span(), format!("nothing waits for a hook at `{at}`"))
            .help("remove `blocking`, or let it be called at `pre-rollout`, `step` or `pre-promotion`");
    }
    let timeout = time_or(Duration::from_secs(10), timeout.as_ref(), "timeout", TIMEOUT, report);
    let deadline = time_or(Duration::from_secs(60), deadline.as_ref(), "deadline", TIMEOUT, report);
    let retries = retries.map_or(Some(0), |written| count(&written, "retries", RETRIES, report));
    let call = match exec {
        Some(exec) => {
            let of_urls = [&url, &url_file, &ca_file, &secret_file, &headers_file];
            if let Some(other) = of_urls.into_iter().flatten().next() {
                report
                    .error(other.span(), "this hook is a program and a URL at once")
                    .help("keep `exec`, or what belongs to the URL");
            }
            lower_exec(exec, allow_exec, report)
        }
        None => {
            let secret = secret_file.map(|written| target::file(&written, report));
            let written = Written { url, url_file, ca_file, headers_file };
            target::lower(written, place, "hook", report).map(|target| Call::Http { target, secret })
        }
    };
    let (at, call) = (at?, call?);
    let name = match (name, &call) {
        (Some(name), _) => name.into_inner(),
        (None, Call::Http { target, .. }) => target.address.to_string(),
        (None, Call::Exec(exec)) => exec[0].clone(),
    };
    let is_blocking = is_blocking.unwrap_or(true) && at.can_block();
    Some(Hook { name, at, is_blocking, call, timeout, retries: retries?, deadline })
}

fn lower_at(written: &Text, report: &mut Report<'_>) -> Option<At> {
    let word = written.get_ref().as_str();
    let at = At::ALL.iter().find(|(name, _)| *name == word).map(|(_, at)| *at);
    if at.is_none() {
        let words = At::ALL.map(|(name, _)| name);
        let remedy = suggest(word, &words, "choices");
        report.error(written.span(), format!("no hook is called at `{word}`")).help_if(remedy);
    }
    at
}

fn lower_exec(exec: Spanned<Vec<Text>>, allow_exec: bool, report: &mut Report<'_>) -> Option<Call> {
    if !allow_exec {
        report.error(exec.span(), "this hook is a program, and programs are not allowed to be hooks").help(
            "if it may be run by the user that the proxy runs as, write `[hooks]` with `allow_exec = true`",
        );
    }
    let program = exec.get_ref().first().map(Spanned::get_ref);
    if !program.is_some_and(|program| program.starts_with('/')) {
        report
            .error(exec.span(), "`exec` does not begin with the path of a program")
            .help("write it from its first `/` on, such as `[\"/usr/local/bin/check\", \"--fast\"]`; no shell is involved");
        return None;
    }
    Some(Call::Exec(exec.into_inner().into_iter().map(Spanned::into_inner).collect()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn written(keys: &str) -> String {
        format!("[[services.web.rollout.hooks]]\n{keys}")
    }

    fn hook(keys: &str) -> Hook {
        parsed(&written(keys)).services.remove(0).rollout.hooks.remove(0)
    }

    #[test]
    fn three_kinds_block_unless_they_are_told_not_to() {
        for (name, at) in At::ALL {
            let url = format!("at = '{name}'\nurl = 'http://a/b'");
            let it = hook(&url);
            assert_eq!((it.at, it.is_blocking, it.name.as_str()), (at, at.can_block(), "http://a/…"));
            assert!(!hook(&format!("{url}\nblocking = false")).is_blocking);
        }
        let plain = hook("at = 'step'\nurl = 'http://a/b'");
        let (timeout, deadline) = (Duration::from_secs(10), Duration::from_secs(60));
        assert_eq!((plain.timeout, plain.retries, plain.deadline), (timeout, 0, deadline));
    }

    #[test]
    fn a_plan_waits_where_a_hook_blocks() {
        let hooks = |keys: &str| parsed(&written(keys)).services.remove(0).rollout.plan.hooks();
        let url = "url = 'http://a'";
        let step = hooks(&format!("at = 'step'\n{url}"));
        assert!(step.step && !step.promotion);
        let promotion = hooks(&format!("at = 'pre-promotion'\n{url}"));
        assert!(!promotion.step && promotion.promotion);
        for other in ["at = 'step'\nblocking = false", "at = 'pre-rollout'", "at = 'event'"] {
            let other = hooks(&format!("{other}\n{url}"));
            assert!(!other.step && !other.promotion);
        }
    }

    #[test]
    fn programs_have_to_be_allowed() {
        let exec = "at = 'step'\nexec = ['/bin/true', '-x']";
        assert_eq!(
            errors(&written(exec)),
            ["this hook is a program, and programs are not allowed to be hooks"]
        );
        let allowed = format!("{}\n[hooks]\nallow_exec = true", written(exec));
        let it = parsed(&allowed).services.remove(0).rollout.hooks.remove(0);
        assert_eq!(it.call, Call::Exec(vec!["/bin/true".to_owned(), "-x".to_owned()]));
        assert_eq!(it.name, "/bin/true");
    }

    #[test]
    fn every_mistake_is_named() {
        let url = "url = 'http://a'";
        for (keys, problem) in [
            ("url = 'http://a'".to_owned(), "this hook does not say when it is called"),
            (format!("at = 'steps'\n{url}"), "no hook is called at `steps`"),
            (format!("at = 'event'\nblocking = true\n{url}"), "nothing waits for a hook at `event`"),
            ("at = 'step'".to_owned(), "this hook does not say where it goes"),
            (format!("at = 'step'\nurl_file = 'a'\n{url}"), "this hook says twice where it goes"),
            (format!("at = 'step'\nretries = -1\n{url}"), "`retries` cannot be -1"),
            (format!("at = 'step'\ntimeout = '0s'\n{url}"), "`timeout` of 0s is too short"),
            (format!("at = 'step'\ndeadline = '0s'\n{url}"), "`deadline` of 0s is too short"),
            (
                "at = 'step'\nurl = 'hooks.example'".to_owned(),
                "`url` is not one: it is not an absolute URL of `http` or `https`, without a user and with a host",
            ),
        ] {
            assert_eq!(errors(&written(&keys)), [problem]);
        }
        let both = format!("{}\n[hooks]\nallow_exec = true", written("at = 'step'\nurl = 'x'\nexec = ['a']"));
        assert_eq!(
            errors(&both),
            ["this hook is a program and a URL at once", "`exec` does not begin with the path of a program"]
        );
    }
}
