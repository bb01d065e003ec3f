//! Answers: JSON documents and `Status` failures.

use crate::body::{self, Response};
use hanse_api::status::Status;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, StatusCode};
use serde_json::Value;

/// A JSON document.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response {
    with_type(code, "application/json", value.to_string())
}

/// A document of another type.
pub(crate) fn with_type(code: StatusCode, media: &'static str, text: String) -> Response {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// A failure.
pub(crate) fn failure(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let value = serde_json::to_value(status).unwrap_or(Value::Null);
    let mut response = json(code, &value);
    if let Some(seconds) = status.details.as_ref().and_then(|d| d.retry_after_seconds) {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if code == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hanse\""));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::status::Reason;

    #[test]
    fn retry_after_only_when_said() {
        let plain = failure(&Status::new(Reason::ServiceUnavailable, "x"));
        assert_eq!(plain.status(), 503);
        assert!(!plain.headers().contains_key(RETRY_AFTER));
        let again = failure(&Status::new(Reason::ServiceUnavailable, "x").retry_after(2));
        assert_eq!(again.headers()[RETRY_AFTER], "2");
        assert_eq!(
            failure(&Status::new(Reason::Unauthorized, "x")).headers()[WWW_AUTHENTICATE],
            "Bearer realm=\"hanse\""
        );
    }
}
