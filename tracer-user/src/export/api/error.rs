//! Errors as JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::model::{ErrorAnswer, ErrorDetail};
use crate::export::source::Unanswered;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    /// A parameter that cannot be used.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "bad_request",
            message: message.into(),
        }
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "not_found",
            message: message.into(),
        }
    }

    pub(super) fn method_not_allowed() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: "method_not_allowed",
            message: "this API only answers GET and changes nothing".to_owned(),
        }
    }
}

impl From<Unanswered> for ApiError {
    fn from(why: Unanswered) -> Self {
        let (code, remedy) = match why {
            Unanswered::Starting => ("starting", "ask again in a few seconds"),
            Unanswered::Gone => ("ending", "ask again when it has been restarted"),
            Unanswered::Late => ("late", "ask again, and see /healthz"),
        };
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code,
            message: format!("{why}; {remedy}"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let answer = ErrorAnswer {
            error: ErrorDetail {
                code: self.code.to_owned(),
                message: self.message,
            },
        };
        (self.status, Json(answer)).into_response()
    }
}
