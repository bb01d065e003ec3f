//! Bodies of requests and answers.

use bytes::{Bytes, BytesMut};
use hanse_api::status::{Reason, Status};
use hanse_runtime::BoxError;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};

/// A body of either direction. Its error breaks the exchange off.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
/// An answer.
pub(crate) type Response = http::Response<Body>;

/// A body without bytes.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of known bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Reads a whole body of at most `limit` bytes.
pub(crate) async fn read(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Bytes, Box<Status>> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = format!("the body of the request could not be read: {error}");
            Box::new(Status::new(Reason::BadRequest, message))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit - whole.len() {
            return Err(too_large(limit));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn too_large(limit: usize) -> Box<Status> {
    let message = format!("Request entity too large: limit is {limit}");
    Box::new(Status::new(Reason::RequestEntityTooLarge, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_are_bounded_by_what_comes_and_by_what_is_announced() {
        let none = HeaderMap::new();
        assert_eq!(read(&none, full("12345"), 5).await.unwrap(), "12345");
        assert_eq!(read(&none, full("123456"), 5).await.unwrap_err().code, 413);
        let mut announced = HeaderMap::new();
        announced.insert(CONTENT_LENGTH, "6".parse().unwrap());
        assert_eq!(read(&announced, empty(), 5).await.unwrap_err().code, 413);
    }
}
