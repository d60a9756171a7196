//! Errors as problem documents (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reload::NotReloaded;
use crate::controller::CommandError;

/// What went wrong with a request to the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The HTTP status, again, for those who only keep the body.
    pub status: u16,
    /// The status in words.
    pub title: String,
    /// What went wrong this time, and what would be right.
    pub detail: String,
    /// How the service stands, where it is not as it was thought to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Box<Value>>,
}

/// The detail of a response that is a problem, for the audit.
#[derive(Debug, Clone)]
pub(super) struct Detail(pub(super) String);

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error").to_owned();
        Self { status: status.as_u16(), title, detail: detail.into(), current: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let detail = Detail(self.detail.clone());
        let mut response = (status, axum::Json(self)).into_response();
        response.extensions_mut().insert(detail);
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        response
    }
}

impl From<NotReloaded> for Problem {
    fn from(error: NotReloaded) -> Self {
        let status = match &error {
            NotReloaded::Wrong(_) => StatusCode::UNPROCESSABLE_ENTITY,
            NotReloaded::Refused(_) => StatusCode::CONFLICT,
            NotReloaded::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        let status = match &error {
            CommandError::UnknownService(_) => StatusCode::NOT_FOUND,
            CommandError::NoCanary(_)
            | CommandError::RolloutRunning { .. }
            | CommandError::Frozen { .. }
            | CommandError::Gone { .. }
            | CommandError::Refused(_)
            | CommandError::Overtaken => StatusCode::CONFLICT,
            CommandError::Changed(_) => StatusCode::PRECONDITION_FAILED,
            CommandError::Unreadable(_) => StatusCode::INTERNAL_SERVER_ERROR,
            CommandError::NotSaved(_) | CommandError::TooLate | CommandError::Stopped => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.to_string())
    }
}
