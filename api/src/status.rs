//! `metav1.Status`: the one error shape that callers of the API see.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Machine-readable class of a failure, with Kubernetes' spelling and HTTP code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 406
    NotAcceptable,
    /// 409, an object of that name exists
    AlreadyExists,
    /// 409, the object changed meanwhile
    Conflict,
    /// 410, the asked revision is no longer there
    Expired,
    /// 413
    RequestEntityTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 422
    Invalid,
    /// 429
    TooManyRequests,
    /// 500
    InternalError,
    /// 502: an upstream gave an answer that must not be passed on
    BadGateway,
    /// 503
    ServiceUnavailable,
    /// 504
    Timeout,
}

impl Reason {
    /// HTTP status code.
    pub const fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::BadGateway => 502,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// Whether the same request may succeed later without a change by the caller.
    pub const fn retryable(self) -> bool {
        match self {
            Self::TooManyRequests
            | Self::ServiceUnavailable
            | Self::Timeout
            | Self::InternalError
            | Self::BadGateway => true,
            Self::BadRequest
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::NotAcceptable
            | Self::AlreadyExists
            | Self::Conflict
            | Self::Expired
            | Self::RequestEntityTooLarge
            | Self::UnsupportedMediaType
            | Self::Invalid => false,
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueForbidden`, ...
    pub reason: String,
    /// What is wrong and what is allowed.
    pub message: String,
    /// Path of the field, such as `spec.clusterRef.cluster`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What the failure is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Resource (plural) or kind.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Single faults of an invalid object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again. Set only where the request certainly had no effect: client-go repeats any verb then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// `metav1.Status` of a failure. `message` is for the caller and holds nothing internal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    kind: String,
    api_version: String,
    metadata: serde_json::Map<String, serde_json::Value>,
    status: String,
    /// What failed, where, and what to do.
    pub message: String,
    /// Class of the failure.
    pub reason: Reason,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// HTTP status code.
    pub code: u16,
}

impl Status {
    /// A failure of class `reason` with a message for the caller.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind: "Status".into(),
            api_version: "v1".into(),
            metadata: serde_json::Map::new(),
            status: "Failure".into(),
            message: message.into(),
            reason,
            details: None,
            code: reason.code(),
        }
    }

    /// The same with details.
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(details);
        self
    }

    /// The same with a hint when to try again; only where the request certainly had no effect.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds);
        self
    }

    /// `resource "name" not found`, in Kubernetes' words.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let qualified = qualify(group, resource);
        Self::about(
            Reason::NotFound,
            format!("{qualified} {name:?} not found"),
            group,
            resource,
            name,
        )
    }

    /// `resource "name" already exists`, in Kubernetes' words.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let qualified = qualify(group, resource);
        Self::about(
            Reason::AlreadyExists,
            format!("{qualified} {name:?} already exists"),
            group,
            resource,
            name,
        )
    }

    /// Optimistic concurrency conflict, in Kubernetes' words.
    pub fn conflict(group: &str, resource: &str, name: &str) -> Self {
        let qualified = qualify(group, resource);
        let message = format!(
            "Operation cannot be fulfilled on {qualified} {name:?}: the object has been modified; please apply your \
             changes to the latest version and try again"
        );
        Self::about(Reason::Conflict, message, group, resource, name)
    }

    /// An object that breaks rules of its kind; one cause per fault.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let faults: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let faults = if let [one] = &faults[..] {
            one.clone()
        } else {
            format!("[{}]", faults.join(", "))
        };
        let qualified = qualify(group, kind);
        let mut status = Self::about(
            Reason::Invalid,
            format!("{qualified} {name:?} is invalid: {faults}"),
            group,
            kind,
            name,
        );
        status.details.get_or_insert_default().causes = causes;
        status
    }

    fn about(reason: Reason, message: String, group: &str, kind: &str, name: &str) -> Self {
        Self::new(reason, message).with_details(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            ..Default::default()
        })
    }

    /// Whether the same request may succeed later without a change by the caller.
    pub fn retryable(&self) -> bool {
        self.reason.retryable()
    }
}

fn qualify(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_what_kubernetes_sends() {
        let status = Status::not_found("management.loft.sh", "projects", "x");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["kind"], "Status");
        assert_eq!(json["apiVersion"], "v1");
        assert_eq!(json["status"], "Failure");
        assert_eq!(json["reason"], "NotFound");
        assert_eq!(json["code"], 404);
        assert_eq!(json["message"], "projects.management.loft.sh \"x\" not found");
        assert_eq!(json["details"]["kind"], "projects");
    }

    #[test]
    fn invalid_names_each_field() {
        let cause = |field: &str| Cause {
            reason: "FieldValueRequired".into(),
            message: "Required value".into(),
            field: field.into(),
        };
        let one = Status::invalid("g", "K", "n", vec![cause("spec.a")]);
        assert_eq!(one.message, "K.g \"n\" is invalid: spec.a: Required value");
        let two = Status::invalid("g", "K", "n", vec![cause("spec.a"), cause("spec.b")]);
        assert_eq!(
            two.message,
            "K.g \"n\" is invalid: [spec.a: Required value, spec.b: Required value]"
        );
        assert_eq!(two.details.unwrap().causes.len(), 2);
    }
}
