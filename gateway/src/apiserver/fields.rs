//! What a caller is told of fields that are unknown or given twice: `fieldValidation` of Kubernetes, in its words.

use super::negotiation::{content_type, decode};
use super::{Call, schema};
use crate::body::Response;
use hanse_api::status::{Cause, Reason, Status};
use http::HeaderName;
use http::header::HeaderValue;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;

/// Most faults that are named.
const MAX_FAULTS: usize = 100;
/// Longest text of one warning, in bytes (as in Kubernetes).
const MAX_WARNING: usize = 256;
/// Most bytes of all warnings (as in Kubernetes).
const MAX_WARNINGS: usize = 4096;

/// What to do about such fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validation {
    /// Nothing.
    Ignore,
    /// Say so in a header.
    Warn,
    /// Refuse.
    Strict,
}

impl Validation {
    /// The meaning of `fieldValidation`, if it has one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// Reads an object from a body. Gives what the caller is to be warned of.
pub(crate) fn read(call: &Call<'_>, body: &[u8]) -> Result<(Value, Vec<String>), Box<Status>> {
    if call.validation == Validation::Ignore {
        return Ok((decode(call.headers, body)?, Vec::new()));
    }
    let value = decode(call.headers, body)?;
    let faults = if content_type(call.headers) == "application/json" {
        duplicates(body)
    } else {
        Vec::new()
    };
    check(call, value, faults)
}

/// Looks for unknown fields beside `faults` that were found before.
pub(crate) fn check(
    call: &Call<'_>,
    value: Value,
    mut faults: Vec<String>,
) -> Result<(Value, Vec<String>), Box<Status>> {
    if call.validation == Validation::Ignore {
        return Ok((value, Vec::new()));
    }
    faults.extend(unknown(call, &value));
    faults.truncate(MAX_FAULTS);
    if call.validation == Validation::Strict && !faults.is_empty() {
        let names = call.kind.names();
        let message = format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {}",
            strict_error(&faults),
            kind = names.kind,
            version = names.version
        );
        return Err(Box::new(Status::new(Reason::BadRequest, message)));
    }
    Ok((value, faults))
}

fn unknown(call: &Call<'_>, value: &Value) -> Vec<String> {
    let name = |path: String| format!("unknown field {path:?}");
    schema::unknown_fields(&schema::of(call.kind).root, value)
        .into_iter()
        .map(name)
        .collect()
}

fn strict_error(faults: &[String]) -> String {
    format!("strict decoding error: {}", faults.join(", "))
}

/// What a patch brings in that was not there before, with the faults of the patch itself.
pub(crate) fn patched(
    call: &Call<'_>,
    old: &Value,
    new: &Value,
    mut faults: Vec<String>,
) -> Result<Vec<String>, Box<Status>> {
    if call.validation == Validation::Ignore {
        return Ok(Vec::new());
    }
    let fresh = unknown(call, new);
    if !fresh.is_empty() {
        let had = unknown(call, old);
        faults.extend(fresh.into_iter().filter(|f| !had.contains(f)));
    }
    faults.truncate(MAX_FAULTS);
    if call.validation == Validation::Strict && !faults.is_empty() {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {:?}: {}", new.to_string(), strict_error(&faults)),
            field: "patch".into(),
        };
        return Err(Box::new(Status::invalid("", "", "", vec![cause])));
    }
    Ok(faults)
}

/// Adds `Warning` headers.
pub(crate) fn warn(mut response: Response, warnings: &[String]) -> Response {
    let mut total = 0;
    for warning in warnings {
        let mut text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        text.retain(|c| !c.is_control());
        let end = (0..=MAX_WARNING.min(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        total += text.len();
        if total > MAX_WARNINGS {
            break;
        }
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
    response
}

/// `duplicate field "…"` for each key that an object of a JSON text holds twice.
pub(crate) fn duplicates(body: &[u8]) -> Vec<String> {
    let found = RefCell::new(Vec::new());
    let mut reader = serde_json::Deserializer::from_slice(body);
    let seed = Look {
        path: Path::Root,
        found: &found,
    };
    // A text that cannot be read is refused by whoever reads it for good.
    if seed.deserialize(&mut reader).is_err() {
        return Vec::new();
    }
    found.into_inner()
}

#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    At(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(above, key) => write!(f, "{above}.{key}"),
            Self::At(above, at) => write!(f, "{above}[{at}]"),
        }
    }
}

struct Look<'a> {
    path: Path<'a>,
    found: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut at = 0;
        while list
            .next_element_seed(Look {
                path: Path::At(&self.path, at),
                found: self.found,
            })?
            .is_some()
        {
            at += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen: Map<String, Value> = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = Path::Key(&self.path, &key);
            let mut found = self
                .found
                .try_borrow_mut()
                .map_err(|_| A::Error::custom("read within a read"))?;
            if seen.contains_key(&key) && found.len() < MAX_FAULTS {
                found.push(format!("duplicate field {:?}", path.to_string()));
            }
            drop(found);
            map.next_value_seed(Look {
                path,
                found: self.found,
            })?;
            seen.insert(key, Value::Null);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_given_twice_are_found_at_any_depth() {
        let text = br#"{"a":1,"b":[{"c":1,"c":2}],"a":{"d":null,"d":true}}"#;
        assert_eq!(
            duplicates(text),
            [
                "duplicate field \"b[0].c\"",
                "duplicate field \"a\"",
                "duplicate field \"a.d\""
            ]
        );
        assert!(duplicates(b"{").is_empty());
        assert!(duplicates(br#"{"a":{"x":1},"b":{"x":1}}"#).is_empty());
    }

    #[test]
    fn warnings_are_quoted_and_bounded() {
        let response = || Response::new(crate::body::empty());
        let one = warn(response(), &["unknown field \"spec.x\"".into()]);
        assert_eq!(one.headers()["warning"], "299 - \"unknown field \\\"spec.x\\\"\"");
        let long = warn(response(), &vec!["é\n".repeat(1000); 100]);
        let total: usize = long.headers().get_all("warning").iter().map(HeaderValue::len).sum();
        assert!(total < MAX_WARNINGS + 1000, "{total}");
    }
}
