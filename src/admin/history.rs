//! What has happened to a service: its history in pages, and its rollouts.

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    routing::get,
};
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{actor::Named, problem::Problem};
use crate::{
    controller::{Controller, history::Past},
    store::Page,
};

/// Entries or rollouts that are given unless another number is asked for, and the most.
const USUAL: usize = 50;
const MOST: usize = 1000;

pub(super) fn router() -> Router<Controller> {
    Router::new()
        .route("/services/{name}/history", get(history))
        .route("/services/{name}/rollouts", get(rollouts))
}

#[derive(Serialize)]
struct History {
    /// The newest first.
    entries: Vec<Box<RawValue>>,
    /// What `before` has to be for the next page; nothing if this is the last.
    next: Option<u64>,
}

async fn history(
    State(controller): State<Controller>,
    Named(name): Named,
    RawQuery(query): RawQuery,
) -> Result<Json<History>, Problem> {
    let [limit, before] = numbers(query.as_deref(), ["limit", "before"])?;
    let Page { entries, next } = controller.history(&name, before, in_range(limit)?).await?;
    Ok(Json(History { entries: entries.into_iter().map(|line| line.body).collect(), next }))
}

#[derive(Serialize)]
struct Rollouts {
    /// The newest first.
    rollouts: Vec<Past>,
    /// What `before` has to be for the next page; nothing if this is the last.
    next: Option<u64>,
}

async fn rollouts(
    State(controller): State<Controller>,
    Named(name): Named,
    RawQuery(query): RawQuery,
) -> Result<Json<Rollouts>, Problem> {
    let [limit, before] = numbers(query.as_deref(), ["limit", "before"])?;
    let (rollouts, next) = controller.rollouts(&name, before, in_range(limit)?).await?;
    Ok(Json(Rollouts { rollouts, next }))
}

/// The numbers that a query has under these keys, which are all that it may have.
fn numbers<const N: usize>(query: Option<&str>, keys: [&str; N]) -> Result<[Option<u64>; N], Problem> {
    let mut numbers = [None; N];
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (place, number) = (keys.iter().position(|known| *known == key), value.parse().ok());
        let (Some(place), Some(number)) = (place, number) else {
            let keys = keys.map(|key| format!("`{key}=NUMBER`")).join(" and ");
            let detail = format!("`{pair}` cannot be asked for here; {keys} can");
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        };
        numbers[place] = Some(number);
    }
    Ok(numbers)
}

fn in_range(limit: Option<u64>) -> Result<usize, Problem> {
    let limit = limit.map_or(Some(USUAL), |limit| usize::try_from(limit).ok());
    limit
        .filter(|limit| (1..=MOST).contains(limit))
        .ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, format!("`limit` must be from 1 to {MOST}")))
}
