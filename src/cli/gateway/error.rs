//! Errors as an OpenAI client expects them.

use crate::client::{Error, ErrorKind};
use crate::wire::typed::{ErrorCode, ErrorMessage};
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

/// An error reply.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    /// The member `type`.
    kind: &'static str,
    pub(super) message: String,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(super) fn new(status: u16, message: impl Into<String>) -> ApiError {
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "service_unavailable_error",
            504 => "timeout_error",
            _ => "api_error",
        };
        ApiError { status, kind, message: message.into(), retry_after: None }
    }

    pub(super) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(400, message)
    }

    /// The outcome of a request at the broker.
    pub(super) fn of_outcome(error: &Error, service: &str) -> ApiError {
        let (status, message) = match error.kind() {
            ErrorKind::ErrorReply => (502, error.reply_text().unwrap_or_default().to_owned()),
            ErrorKind::NoResponders => (503, format!("no engine offers the service {service}")),
            ErrorKind::BreakerOpen => (503, format!("the service {service} fails; its breaker is open")),
            ErrorKind::Overloaded => (429, format!("the service {service} is overloaded")),
            ErrorKind::DeadlineExceeded | ErrorKind::Timeout => (504, format!("the service {service} took too long")),
            ErrorKind::TooLarge => (413, error.to_string()),
            ErrorKind::NotAllowed => (403, error.to_string()),
            ErrorKind::ResponderLost => (502, format!("the engine of the service {service} ended")),
            _ => (503, error.to_string()),
        };
        ApiError { retry_after: error.retry_after(), ..ApiError::new(status, message) }
    }

    /// A typed error in place of a reply.
    pub(super) fn of_message(error: ErrorMessage) -> ApiError {
        let status = match error.code {
            ErrorCode::InvalidRequest => 400,
            ErrorCode::NotFound => 404,
            ErrorCode::NotAllowed => 403,
            ErrorCode::RateLimited => 429,
            ErrorCode::Timeout => 504,
            ErrorCode::Internal => 502,
            ErrorCode::Unavailable => 503,
        };
        let retry_after = error.retry_after_ms.map(|ms| Duration::from_millis(ms.into()));
        ApiError { retry_after, ..ApiError::new(status, error.message) }
    }

    /// The body; also an event of a stream that fails half way.
    pub(super) fn json(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": null, "code": self.status } })
    }

    pub(super) fn response(&self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(status);
        response.content_type("application/json");
        if let Some(time) = self.retry_after {
            response.insert_header(("Retry-After", time.as_secs().max(1).to_string()));
        }
        // OpenAI's libraries repeat a failed request unless told not to: the breaker would count each.
        response.insert_header(("x-should-retry", "false"));
        if self.status == 401 {
            response.insert_header(("WWW-Authenticate", "Bearer"));
        }
        response.body(self.json().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_form_that_clients_expect() {
        let error = ApiError::new(401, "no token");
        assert_eq!(error.json()["error"]["type"], "authentication_error");
        assert_eq!(error.json()["error"]["message"], "no token");
        for (status, kind) in [(400, "invalid_request_error"), (413, "invalid_request_error"), (502, "api_error")] {
            assert_eq!(ApiError::new(status, "").kind, kind);
        }
    }

    #[test]
    fn a_typed_error_keeps_its_kind_and_its_pause() {
        let message = ErrorMessage {
            id: Some(1),
            code: ErrorCode::Unavailable,
            message: "the model is being loaded".to_owned(),
            retry_after_ms: Some(2500),
        };
        let error = ApiError::of_message(message);
        assert_eq!((error.status, error.retry_after), (503, Some(Duration::from_millis(2500))));
        assert_eq!(error.response().headers().get("Retry-After").unwrap(), "2");
    }
}
