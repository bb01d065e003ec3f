//! Parameters of lists and watches, and the token by which a list goes on.

use super::fields::Validation;
use super::selector::Selector;
use crate::query::Query;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_api::status::{Cause, Reason, Status};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// Which state a reader is content with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// The present one.
    Latest,
    /// Any.
    Any,
    /// That of this revision or a later one.
    AtLeast(i64),
    /// That of exactly this revision.
    Exactly(i64),
}

/// Parameters of a list or watch.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub(crate) selector: Selector,
    pub(crate) version: Version,
    /// Most items of the answer; 0: all.
    pub(crate) limit: i64,
    pub(crate) resume: Option<Token>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) bookmarks: bool,
    pub(crate) initial_events: Option<bool>,
}

/// Where a list goes on. Opaque to clients; the form is that of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    v: String,
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Token {
    /// After the object `name` of a list at `revision`.
    pub(crate) fn new(revision: i64, namespace: &str, name: &str) -> Self {
        Self {
            v: TOKEN_VERSION.into(),
            rv: revision,
            start: format!("{namespace}/{name}"),
        }
    }

    pub(crate) fn encode(&self) -> String {
        serde_json::to_vec(self)
            .map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
            .unwrap_or_default()
    }

    fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let token: Self = serde_json::from_slice(&bytes).ok()?;
        let (namespace, name) = token.after();
        let good = |text: &str| hanse_api::name::check_subdomain(text).is_ok();
        let fits =
            token.v == TOKEN_VERSION && token.rv > 0 && good(&name) && (namespace.is_empty() || good(&namespace));
        fits.then_some(token)
    }

    /// Revision that the list is of.
    pub(crate) fn revision(&self) -> i64 {
        self.rv
    }

    /// Namespace and name of the last object that was given out.
    pub(crate) fn after(&self) -> (String, String) {
        let (namespace, name) = self.start.split_once('/').unwrap_or(("", &self.start));
        (namespace.to_owned(), name.to_owned())
    }
}

impl ListOptions {
    /// Reads the parameters of a list, or with `watch` of a watch.
    pub(crate) fn read(query: &Query, watch: bool) -> Result<Self, Box<Status>> {
        let selector = Selector::parse(query.text("labelSelector"), query.text("fieldSelector")).map_err(bad)?;
        let resume = match query.text("continue").filter(|_| !watch) {
            Some(text) => Some(Token::decode(text).ok_or_else(|| bad("continue key is not valid"))?),
            None => None,
        };
        let initial_events = query.flag_if_given("sendInitialEvents");
        let version = version(query, watch, resume.is_some(), initial_events)?;
        Ok(Self {
            selector,
            version,
            limit: number(query, "limit")?.unwrap_or(0),
            resume,
            timeout: number(query, "timeoutSeconds")?
                .filter(|s| *s > 0)
                .map(|s| Duration::from_secs(s.unsigned_abs())),
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events,
        })
    }
}

/// Parameters of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteOptions {
    /// Everything but the change itself.
    pub(crate) dry_run: bool,
    pub(crate) validation: Validation,
}

/// Longest name of a manager (as in Kubernetes).
pub(crate) const MAX_MANAGER: usize = 128;

impl WriteOptions {
    /// Reads the parameters of what `verb` does, an apply or another patch among them. Kubernetes calls every fault by name;
    /// what only reads has none.
    pub(crate) fn read(query: &Query, verb: &str, is_apply: bool) -> Result<Self, Box<Status>> {
        let validation = Validation::parse(query.first("fieldValidation").unwrap_or_default());
        let dry_runs: Vec<&str> = query.all("dryRun").collect();
        let kind = match verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            "delete" | "deletecollection" => "DeleteOptions",
            _ => {
                return Ok(Self {
                    dry_run: false,
                    validation: Validation::Ignore,
                });
            }
        };
        let mut faults = Vec::new();
        if kind != "DeleteOptions" {
            let manager = query.first("fieldManager").unwrap_or_default();
            if kind == "PatchOptions" {
                faults.extend(patch_fault(is_apply, manager, query.flag_if_given("force")));
            }
            faults.extend(manager_faults(manager));
        }
        faults.extend(dry_run_fault(&dry_runs));
        if validation.is_none() && kind != "DeleteOptions" {
            let given = query.first("fieldValidation").unwrap_or_default();
            let message = format!(r#"Unsupported value: {given:?}: supported values: "", "Ignore", "Strict", "Warn""#);
            faults.push(cause("FieldValueNotSupported", "fieldValidation", message));
        }
        if faults.is_empty() {
            Ok(Self {
                dry_run: !dry_runs.is_empty(),
                validation: validation.unwrap_or(Validation::Warn),
            })
        } else {
            Err(Box::new(Status::invalid("meta.k8s.io", kind, "", faults)))
        }
    }
}

fn patch_fault(is_apply: bool, manager: &str, force: Option<bool>) -> Option<Cause> {
    match (is_apply, force) {
        (true, _) if manager.is_empty() => Some(cause(
            "FieldValueRequired",
            "fieldManager",
            "Required value: is required for apply patch",
        )),
        (false, Some(_)) => Some(cause(
            "FieldValueForbidden",
            "force",
            "Forbidden: may not be specified for non-apply patch",
        )),
        _ => None,
    }
}

fn manager_faults(manager: &str) -> Vec<Cause> {
    let mut faults = Vec::new();
    if manager.len() > MAX_MANAGER {
        let message = format!("Too long: may not be more than {MAX_MANAGER} bytes");
        faults.push(cause("FieldValueTooLong", "fieldManager", message));
    } else if let Some((at, c)) = manager.char_indices().find(|(_, c)| c.is_control()) {
        let message = format!(
            "Invalid value: {manager:?}: invalid character U+{:04X} (at position {at})",
            u32::from(c)
        );
        faults.push(cause("FieldValueInvalid", "fieldManager", message));
    }
    faults
}

/// The fault of a `dryRun` that is not `All`.
pub(crate) fn dry_run_fault(given: &[&str]) -> Option<Cause> {
    let message = format!(r#"Unsupported value: {}: supported values: "All""#, json!(given));
    let is_bad = given.iter().any(|value| *value != "All");
    is_bad.then(|| cause("FieldValueNotSupported", "dryRun", message))
}

/// A fault of a field.
pub(crate) fn cause(reason: &str, field: &str, message: impl Into<String>) -> Cause {
    Cause {
        reason: reason.into(),
        message: message.into(),
        field: field.into(),
    }
}

fn bad(message: impl Into<String>) -> Box<Status> {
    Box::new(Status::new(Reason::BadRequest, message))
}

/// 422 about a parameter.
fn invalid(field: &str, message: &str) -> Box<Status> {
    let fault = cause("FieldValueForbidden", field, format!("Forbidden: {message}"));
    Box::new(Status::invalid("meta.k8s.io", "ListOptions", "", vec![fault]))
}

fn number(query: &Query, key: &str) -> Result<Option<i64>, Box<Status>> {
    let Some(text) = query.text(key) else { return Ok(None) };
    text.parse()
        .ok()
        .filter(|n| *n >= 0)
        .map(Some)
        .ok_or_else(|| bad(format!("invalid {key} {text:?}: must be a number of at least 0")))
}

/// A `resourceVersion`: a plain decimal number.
pub(crate) fn resource_version(text: &str) -> Option<i64> {
    let plain = text == "0" || (!text.starts_with('0') && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    if plain { text.parse().ok() } else { None }
}

fn version(query: &Query, watch: bool, resumed: bool, initial: Option<bool>) -> Result<Version, Box<Status>> {
    let text = query.text("resourceVersion");
    let revision = match text {
        Some(text) => resource_version(text).ok_or_else(|| bad(format!("invalid resource version {text:?}")))?,
        None => 0,
    };
    let rule = query.text("resourceVersionMatch");
    if !matches!(rule, None | Some("Exact" | "NotOlderThan")) {
        return Err(invalid(
            "resourceVersionMatch",
            "supported values are Exact and NotOlderThan",
        ));
    }
    if watch {
        match (initial, rule) {
            (Some(_), Some("NotOlderThan")) | (None, None) => {}
            (Some(_), _) => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            (None, _) => {
                return Err(invalid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
        }
    } else {
        if initial.is_some() {
            return Err(invalid("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        if rule.is_some() && text.is_none() {
            return Err(invalid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if rule.is_some() && resumed {
            return Err(invalid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if resumed && revision > 0 {
            return Err(bad("specifying resource version is not allowed when using continue"));
        }
        if rule == Some("Exact") && revision == 0 {
            return Err(invalid(
                "resourceVersionMatch",
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    let paged = number(query, "limit")?.is_some_and(|limit| limit > 0);
    Ok(match (text, revision) {
        (None, _) => Version::Latest,
        (Some(_), 0) => Version::Any,
        // A page of a list at a revision is of exactly that revision, unless the client says otherwise.
        (Some(_), n) if rule == Some("Exact") || (rule.is_none() && paged && !watch) => Version::Exactly(n),
        (Some(_), n) => Version::AtLeast(n),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<ListOptions, Box<Status>> {
        ListOptions::read(&Query::parse(text).unwrap(), false)
    }

    fn watch(text: &str) -> Result<ListOptions, Box<Status>> {
        ListOptions::read(&Query::parse(text).unwrap(), true)
    }

    #[test]
    fn versions_of_lists() {
        let table = [
            ("", Version::Latest),
            ("resourceVersion=0", Version::Any),
            ("resourceVersion=0&limit=500", Version::Any),
            ("resourceVersion=7", Version::AtLeast(7)),
            ("resourceVersion=7&limit=5", Version::Exactly(7)),
            (
                "resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan",
                Version::AtLeast(7),
            ),
            ("resourceVersion=7&resourceVersionMatch=Exact", Version::Exactly(7)),
        ];
        for (text, want) in table {
            assert_eq!(list(text).unwrap().version, want, "{text}");
        }
        for (text, code) in [
            ("resourceVersion=abc", 400),
            ("resourceVersion=-1", 400),
            ("resourceVersion=01", 400),
            ("limit=x", 400),
            ("limit=-1", 400),
            ("continue=zzz", 400),
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", 422),
            ("resourceVersion=1&resourceVersionMatch=Newer", 422),
            ("sendInitialEvents=true", 422),
            ("labelSelector=a%20b", 400),
            ("fieldSelector=spec.x%3D1", 400),
            ("resourceVersion=99999999999999999999", 400),
        ] {
            assert_eq!(list(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn versions_of_watches() {
        assert_eq!(watch("resourceVersion=7").unwrap().version, Version::AtLeast(7));
        let streamed =
            watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true").unwrap();
        assert_eq!(
            (streamed.version, streamed.initial_events, streamed.bookmarks),
            (Version::Latest, Some(true), true)
        );
        assert_eq!(
            watch("timeoutSeconds=30").unwrap().timeout,
            Some(Duration::from_secs(30))
        );
        for bad in [
            "sendInitialEvents=true",
            "resourceVersionMatch=NotOlderThan",
            "sendInitialEvents=false&resourceVersionMatch=Exact&resourceVersion=1",
        ] {
            assert_eq!(watch(bad).unwrap_err().code, 422, "{bad}");
        }
    }

    #[test]
    fn options_of_writes_are_refused_by_name() {
        let read = |text: &str, verb, is_apply| WriteOptions::read(&Query::parse(text).unwrap(), verb, is_apply);
        let good = read("dryRun=All&fieldValidation=Strict&fieldManager=m", "update", false).unwrap();
        assert_eq!((good.dry_run, good.validation), (true, Validation::Strict));
        assert!(!read("", "create", false).unwrap().dry_run);
        assert!(read("dryRun=Some&fieldValidation=x", "get", false).is_ok());
        assert!(read("fieldManager=m&force=true", "patch", true).is_ok());
        let long = format!("fieldManager={}", "m".repeat(MAX_MANAGER + 1));
        for (text, verb, is_apply, kind, field) in [
            ("dryRun=Some", "create", false, "CreateOptions", "dryRun"),
            ("dryRun=All&dryRun=Some", "update", false, "UpdateOptions", "dryRun"),
            ("dryRun=Some", "delete", false, "DeleteOptions", "dryRun"),
            ("fieldValidation=x", "update", false, "UpdateOptions", "fieldValidation"),
            ("force=false", "patch", false, "PatchOptions", "force"),
            ("", "patch", true, "PatchOptions", "fieldManager"),
            ("fieldManager=a%0Ab", "create", false, "CreateOptions", "fieldManager"),
            (&long, "create", false, "CreateOptions", "fieldManager"),
        ] {
            let status = read(text, verb, is_apply).unwrap_err();
            let details = status.details.unwrap();
            let fields: Vec<&str> = details.causes.iter().map(|c| c.field.as_str()).collect();
            assert_eq!(
                (status.code, details.kind.as_str(), &fields[..]),
                (422, kind, &[field][..]),
                "{text}"
            );
        }
    }

    #[test]
    fn tokens_round_trip_and_are_checked() {
        let token = Token::new(42, "p-x", "demo");
        assert_eq!(Token::decode(&token.encode()), Some(token.clone()));
        assert_eq!(token.after(), ("p-x".into(), "demo".into()));
        assert_eq!(
            Token::decode(&Token::new(1, "", "eu").encode()).unwrap().after(),
            (String::new(), "eu".into())
        );
        for bad in [
            Token::new(0, "", "a"),
            Token::new(1, "..", "a"),
            Token::new(1, "", "../x"),
            Token::new(1, "a", ""),
        ] {
            assert_eq!(Token::decode(&bad.encode()), None, "{bad:?}");
        }
    }
}
