//! Checks of what is measured elsewhere: each asks for its numbers in a task of its own, so that no provider,
//! slow as it may be, holds up a decision. What the numbers mean is decided in `rollout::check`.

mod http;
mod prometheus;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Error, bail};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

use self::http::Client;
use super::service::ServiceTask;
use crate::{
    analysis::verdict::{Arms, Stage, Verdict},
    clock,
    config::Check,
    model::role::Role,
    rollout::check::{self, CheckStatus, Measured, Source, Subject, Watch},
    tls::client::Settings,
};

/// The checks of one rollout. They end with this.
#[derive(Debug)]
pub(super) struct Checks {
    subject: Arc<Subject>,
    each: Vec<(Check, Option<Measuring>)>,
}

/// A check that is measured, until this is dropped.
#[derive(Debug)]
struct Measuring {
    watch: watch::Receiver<Watch>,
    _task: JoinSet<()>,
}

impl Checks {
    /// The checks of a rollout of which nothing is measured yet.
    pub(super) fn new(checks: &[Check], subject: Subject) -> Self {
        Self { subject: Arc::new(subject), each: checks.iter().map(|check| (check.clone(), None)).collect() }
    }

    /// Measures those that are wanted, or all, and no others. One that was not wanted for a while begins at
    /// nothing: what it would have shown meanwhile is just what nobody wanted to know.
    pub(super) fn watch(&mut self, wanted: Option<&[Arc<str>]>) {
        for (check, measuring) in &mut self.each {
            if wanted.is_none_or(|wanted| wanted.contains(&check.name)) {
                measuring.get_or_insert_with(|| Measuring::begin(check, &self.subject));
            } else {
                *measuring = None;
            }
        }
    }

    /// How each stands that is measured.
    pub(super) fn status(&self) -> Vec<CheckStatus> {
        let now = clock::now();
        let each = self.each.iter().filter_map(|(check, measuring)| Some((check, measuring.as_ref()?)));
        each.map(|(check, measuring)| measuring.watch.borrow().status(&check.name, &check.rule, now))
            .collect()
    }

    /// Has them their say, and returns how they stood. In baking there is nobody left to be compared with, and
    /// where limits alone decide nobody is.
    pub(super) fn consider(&self, verdict: &mut Verdict) -> Vec<CheckStatus> {
        let mut status = self.status();
        if verdict.stage == Stage::Baking || verdict.guards_only {
            let compares =
                |name| self.each.iter().any(|(check, _)| check.name == name && check.rule.compares());
            status.retain(|status| !compares(Arc::clone(&status.name)));
        }
        check::consider(verdict, &status);
        status
    }
}

impl Measuring {
    fn begin(check: &Check, subject: &Arc<Subject>) -> Self {
        let (sender, watch) = watch::channel(Watch::default());
        let mut task = JoinSet::new();
        task.spawn(run(check.clone(), Arc::clone(subject), sender));
        Self { watch, _task: task }
    }
}

impl ServiceTask {
    /// The rollout begins, or goes on in another process: it keeps the checks that are written now, as nobody is
    /// to turn off what holds it, or put it under another limit, by the way.
    pub(super) fn take_up_checks(&mut self) {
        let Some(record) = &self.record else { return };
        let subject = Subject { service: self.config.name.clone(), roles: record.roles.clone() };
        self.checks = Some(Checks::new(&self.config.rollout.checks, subject));
    }

    /// Has checks of what is measured elsewhere their say, and returns how they stood.
    pub(super) fn ask_elsewhere(&mut self, verdict: &mut Verdict) -> Vec<CheckStatus> {
        let (Some(record), Some(checks)) = (&self.record, &mut self.checks) else { return Vec::new() };
        let wanted = record.phase.step().and_then(|step| record.plan.checks_in(step));
        checks.watch(wanted);
        checks.consider(verdict)
    }
}

/// Measures again and again.
async fn run(check: Check, subject: Arc<Subject>, watch: watch::Sender<Watch>) {
    let mut interval = time::interval(check.interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let client = Client::new(&check.tls, check.source.is_https());
    loop {
        interval.tick().await;
        let measured = match &client {
            Ok(client) => time::timeout(check.timeout, measure(&check, &subject, client)).await,
            Err(why) => Ok(Err(why.clone())),
        };
        let measured = measured.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if let Err(why) = &measured {
            tracing::warn!(service = %subject.service, check = %check.name, %why, "a check has no answer");
        }
        let at = clock::now();
        watch.send_modify(|watch| watch.take(measured, &check.rule, at));
    }
}

/// Asks for the canary's number, and for stable's where it is compared.
async fn measure(check: &Check, subject: &Subject, client: &Client) -> Measured {
    let ask = async |role| ask(check, subject, role, client).await.map_err(|error| format!("{error:#}"));
    let canary = ask(Role::Canary).await?;
    let stable = if check.rule.compares() { ask(Role::Stable).await? } else { None };
    Ok(Arms { stable, canary })
}

async fn ask(check: &Check, subject: &Subject, role: Role, client: &Client) -> anyhow::Result<Option<f64>> {
    let Check { source, timeout, rule, .. } = check;
    match source {
        Source::Prometheus { address, query } => {
            let times = (*timeout, rule.max_age);
            prometheus::query(client, address, &subject.asked(query, role), times).await
        }
        Source::Http { url, json_pointer } => client.number(&subject.asked(url, role), json_pointer).await,
    }
}

/// The value that the Prometheus at a URL has for a query now, from samples of the last five minutes; nothing if it
/// has none. Who is to answer over https:// is whom the system trusts.
///
/// # Errors
/// When there is no answer within ten seconds, or it is not one number.
pub async fn ask_prometheus(url: &str, query: &str) -> anyhow::Result<Option<f64>> {
    const TIMES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
    let address = url.trim_end_matches('/');
    if !["http://", "https://"].iter().any(|scheme| address.starts_with(scheme)) {
        bail!("write Prometheus as a URL such as http://127.0.0.1:9090, not `{url}`");
    }
    let client = Client::new(&Settings::default(), address.starts_with("https://")).map_err(Error::msg)?;
    let answer = time::timeout(TIMES.0, prometheus::query(&client, address, query, TIMES)).await;
    let answer = answer.unwrap_or_else(|_| bail!("no answer in time"));
    answer.with_context(|| format!("{address} has no answer to `{query}`"))
}
