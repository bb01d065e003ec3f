//! In which form a caller wants his answer, and in which form he sent his body.

use hanse_api::status::{Reason, Status};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;

/// Most media ranges that are looked at.
const MAX_RANGES: usize = 64;
/// Deepest nesting of a body.
const MAX_DEPTH: usize = 128;

/// Shape of the objects in an answer. All are JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Objects,
    /// `meta.k8s.io/v1` Table (the version is echoed).
    Table(&'static str),
    /// `PartialObjectMetadata` or its list.
    Metadata(&'static str),
    /// `apidiscovery.k8s.io/v2`, for `/api` and `/apis` only.
    Discovery,
}

/// The first form in the `Accept` header that can be served; `discovery` says whether that of `/apis` counts.
pub(crate) fn form(headers: &HeaderMap, discovery: bool) -> Result<Form, Box<Status>> {
    let values: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
    let mut ranges = values
        .iter()
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|r| !r.is_empty())
        .take(MAX_RANGES)
        .peekable();
    if ranges.peek().is_none() {
        return Ok(Form::Objects);
    }
    ranges.find_map(|r| served(r, discovery)).ok_or_else(|| {
        Box::new(Status::new(
            Reason::NotAcceptable,
            "only the following media types are accepted: application/json, application/json;as=Table;v=v1;g=meta.k8s.io, \
             application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
        ))
    })
}

fn served(range: &str, discovery: bool) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?;
    if !matches!(
        media.to_ascii_lowercase().as_str(),
        "application/json" | "application/*" | "*/*"
    ) {
        return None;
    }
    let (mut kind, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", v)) => kind = v,
            Some(("g", v)) => group = v,
            Some(("v", v)) => version = v,
            // A quality of zero means "not this".
            Some(("q", v)) if v.trim_matches(['0', '.']).is_empty() => return None,
            _ => {}
        }
    }
    let meta_version = match version {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => "",
    };
    match (kind, group) {
        ("", _) => Some(Form::Objects),
        ("Table", "meta.k8s.io") if !meta_version.is_empty() => Some(Form::Table(meta_version)),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io") if !meta_version.is_empty() => {
            Some(Form::Metadata(meta_version))
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io") if discovery && version == "v2" => Some(Form::Discovery),
        _ => None,
    }
}

/// Media type of a body, without parameters, in lower case; JSON when there is none.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let text = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let media = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media.is_empty() {
        "application/json".into()
    } else {
        media
    }
}

/// Reads an object from a body.
pub(crate) fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value, Box<Status>> {
    match content_type(headers).as_str() {
        media @ ("application/json" | "application/yaml") => decode_as(media, body),
        other => Err(unsupported(other, "application/json, application/yaml")),
    }
}

/// Reads an object in JSON, or for every other media type in YAML.
pub(crate) fn decode_as(media: &str, body: &[u8]) -> Result<Value, Box<Status>> {
    let bad = |why: String| {
        Box::new(Status::new(
            Reason::BadRequest,
            format!("the object provided is unrecognized (must be of type Object): {why}"),
        ))
    };
    let value: Value = match media {
        "application/json" => serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?,
        _ => {
            let text = std::str::from_utf8(body).map_err(|e| bad(e.to_string()))?;
            // As deep as JSON may be: deeper values would exhaust the stack of whoever writes or drops them.
            let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: MAX_DEPTH } };
            serde_saphyr::from_str_with_options(text, options).map_err(|e| bad(e.to_string()))?
        }
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err(bad("it is not an object".into()))
    }
}

/// 415, naming what is understood.
pub(crate) fn unsupported(media: &str, known: &str) -> Box<Status> {
    let message =
        format!("the body of the request was in an unknown format ({media}) - accepted media types include: {known}");
    Box::new(Status::new(Reason::UnsupportedMediaType, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(ACCEPT, text.parse().unwrap());
        map
    }

    #[test]
    fn forms() {
        let table = [
            ("application/json", Form::Objects),
            ("*/*", Form::Objects),
            ("application/vnd.kubernetes.protobuf,application/json", Form::Objects),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Form::Table("v1"),
            ),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Form::Metadata("v1"),
            ),
            ("application/json;as=Unknown;v=v1;g=x,application/json", Form::Objects),
            ("application/json;stream=watch", Form::Objects),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io, application/json;q=0.5",
                Form::Objects,
            ),
        ];
        for (text, want) in table {
            assert_eq!(form(&accept(text), false).unwrap(), want, "{text}");
        }
        assert_eq!(form(&HeaderMap::new(), false).unwrap(), Form::Objects);
        for bad in [
            "application/vnd.kubernetes.protobuf",
            "text/html",
            "application/json;q=0",
        ] {
            assert_eq!(form(&accept(bad), false).unwrap_err().code, 406, "{bad}");
        }
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(form(&accept(discovery), true).unwrap(), Form::Discovery);
        assert_eq!(form(&accept(discovery), false).unwrap(), Form::Objects);
    }

    #[test]
    fn bodies() {
        let with = |media: &str, body: &str| {
            let mut map = HeaderMap::new();
            map.insert(CONTENT_TYPE, media.parse().unwrap());
            decode(&map, body.as_bytes())
        };
        assert_eq!(with("application/json; charset=utf-8", "{\"a\":1}").unwrap()["a"], 1);
        assert_eq!(with("application/yaml", "a:\n  b: [1, x]\n").unwrap()["a"]["b"][1], "x");
        assert_eq!(with("application/json", "{").unwrap_err().code, 400);
        assert_eq!(with("application/json", "[]").unwrap_err().code, 400);
        assert_eq!(with("application/yaml", "a: [").unwrap_err().code, 400);
        let deep = |n: usize| format!("{}{}", "{a: ".repeat(n), "}".repeat(n));
        assert!(with("application/yaml", &deep(50)).is_ok());
        let (json, nested) = ("{\"a\":".repeat(100_000), deep(100_000));
        assert_eq!(with("application/yaml", &nested).unwrap_err().code, 400);
        assert_eq!(with("application/json", &json).unwrap_err().code, 400);
        let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                      d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
        assert_eq!(with("application/yaml", laughs).unwrap_err().code, 400);
        assert_eq!(
            with("application/vnd.kubernetes.protobuf", "k8s").unwrap_err().code,
            415
        );
        assert_eq!(decode(&HeaderMap::new(), b"{}").unwrap(), serde_json::json!({}));
    }
}
