//! How much traffic a service has: as it is told, as a running instance says, or as Prometheus remembers.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::Value;

use super::{args, operate::api::Api};
use crate::{controller::check::ask_prometheus, rollout::forecast::Traffic};

/// What is asked of a service, wherever that is to be learned.
pub(super) fn of(service: &str, args: &args::Plan) -> anyhow::Result<Traffic> {
    let Traffic { requests_per_second, failing } = match (args.rate, &args.prometheus) {
        (Some(rate), _) => Traffic { requests_per_second: rate, failing: USUALLY_FAILING },
        (None, Some(prometheus)) => ask(remembered(prometheus, service, args.query.as_deref()))?,
        (None, None) => ask(running(args, service)).context(
            "say how much traffic there is with --rate, or ask another with --address or --prometheus",
        )?,
    };
    if !(requests_per_second > 0.0 && requests_per_second <= 1e6) {
        bail!("service `{service}` has {requests_per_second} requests a second: give a --rate over 0");
    }
    Ok(Traffic { requests_per_second, failing: args.fails.unwrap_or(failing) })
}

fn ask(asked: impl Future<Output = anyhow::Result<Traffic>>) -> anyhow::Result<Traffic> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.context("no answer in time")? })
}

/// What a running instance has seen in the last ten to twenty seconds.
async fn running(args: &args::Plan, service: &str) -> anyhow::Result<Traffic> {
    let status = Api::new(&args.access)?.call(Method::GET, &format!("/services/{service}"), None).await?;
    let backends = status["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rate = |backend: &Value| backend["recent"]["requests_per_second"].as_f64();
    let stable = backends.iter().find(|backend| backend["role"] == "stable");
    Ok(Traffic {
        requests_per_second: backends.iter().filter_map(rate).sum(),
        failing: stable.and_then(|stable| stable["recent"]["error_rate"].as_f64()).unwrap_or(0.0),
    })
}

/// What Prometheus has seen in the last hour: of Tidegate's own metrics, or by a query for those who do not
/// run it yet.
async fn remembered(prometheus: &str, service: &str, query: Option<&str>) -> anyhow::Result<Traffic> {
    let rate = |of: &str, labels: &str| {
        format!("sum(rate(tidegate_{of}_total{{service=\"{service}\"{labels}}}[1h]))")
    };
    let asked = query.map_or_else(|| rate("requests", ""), ToOwned::to_owned);
    let requests = ask_prometheus(prometheus, &asked).await?;
    let requests = requests.with_context(|| format!("Prometheus knows nothing of `{asked}`"))?;
    let failing = match query {
        Some(_) => Some(USUALLY_FAILING),
        None => {
            let stable = ",role=\"stable\"";
            let share = format!("{} / {}", rate("request_failures", stable), rate("requests", stable));
            ask_prometheus(prometheus, &share).await?
        }
    };
    Ok(Traffic {
        requests_per_second: requests,
        failing: failing.filter(|share| share.is_finite()).unwrap_or(0.0),
    })
}

/// The share of requests that stable fails, where nobody knows better.
const USUALLY_FAILING: f64 = 0.001;
const PATIENCE: Duration = Duration::from_secs(10);
