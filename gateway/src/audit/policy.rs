//! Which requests are audited, and how much of each: rules in the shape of a Policy of `audit.k8s.io/v1`, the first that fits
//! counts. Pure.
//!
//! A rule says more or less than what holds without one ([`super`]), but two things it cannot change: a change of an object of the
//! management API has its event, at `Metadata` at least, because the change and its place in the chain are one; and bodies of
//! what is secret are in no event.

use crate::kinds;
use crate::proxy::path::RequestInfo;
use hanse_api::kinds::{HANSE_GROUP, KindName, LOFT_GROUP, STORAGE_GROUP};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Resources whose bodies are in no event, beside kinds with a sealed field: by group and plural.
const SECRET: &[(&str, &str)] = &[
    ("", "secrets"),
    (LOFT_GROUP, "accesskeys"),
    (LOFT_GROUP, "oidcclients"),
    (LOFT_GROUP, "ownedaccesskeys"),
    (LOFT_GROUP, "resetaccesskeys"),
    (STORAGE_GROUP, "accesskeys"),
    (HANSE_GROUP, "enrolmenttokens"),
    (HANSE_GROUP, "oidckeys"),
];
/// The same for subresources of any kind.
const SECRET_PARTS: &[&str] = &["accesskey", "agentconfig", "enrolmenttoken", "kubeconfig", "token"];

/// How much of a request an event shows. Each shows what those before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AuditLevel {
    /// There is no event.
    None,
    /// Who, what, from where, with which outcome.
    #[default]
    Metadata,
    /// And what was sent.
    Request,
    /// And what became of the object.
    RequestResponse,
}

impl AuditLevel {
    /// As events have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// How far a request was when its event was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditStage {
    /// It is allowed, and nothing of it has happened.
    RequestReceived,
    /// The answer has begun, and may go on for long.
    ResponseStarted,
    /// Its outcome is known.
    ResponseComplete,
}

impl AuditStage {
    /// As events have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
        }
    }
}

/// Whose API a request is for, in the words of vCluster Platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditTarget {
    /// The management API.
    Management,
    /// A connected cluster's.
    Cluster,
    /// A tenant cluster's.
    ProjectVCluster,
}

/// Resources of a group, as `GroupResources` of `audit.k8s.io/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
pub struct AuditResources {
    /// API group; empty: core.
    pub group: String,
    /// `pods`, `pods/log`, `pods/*`, `*/log` or `*`; all without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of objects; all without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
}

/// A rule, as `PolicyRule` of `audit.k8s.io/v1`. It fits a request that every one of its lists fits; an empty one fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuditRule {
    /// How much is told of what fits.
    pub level: AuditLevel,
    /// Names of users, as they logged in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Groups, of which the user is in one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_groups: Vec<String>,
    /// Verbs, such as `get` or `create`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// Namespaces; the empty one is that of resources without. Only requests for resources fit then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Paths of what is no resource, with `*` at the end for all below. Only such requests fit then.
    #[serde(default, rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
    /// Whose API is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_targets: Vec<AuditTarget>,
    /// Connected clusters whose API is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
    /// Stages of which there is no event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omit_stages: Vec<AuditStage>,
    /// Resources. Only requests for them fit then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<AuditResources>,
}

impl AuditRule {
    /// Every fault: key and text.
    pub(crate) fn faults(&self) -> Vec<(&'static str, &'static str)> {
        let mut faults = Vec::new();
        let resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if resources && !self.non_resource_urls.is_empty() {
            faults.push((
                "nonResourceURLs",
                "no request is for these and for resources: make two rules",
            ));
        }
        let good = |url: &String| url == "*" || url.starts_with('/') && !url.trim_end_matches('*').contains('*');
        if !self.non_resource_urls.iter().all(good) {
            faults.push((
                "nonResourceURLs",
                "must be * or begin with / and have * at the end only",
            ));
        }
        let named = |r: &AuditResources| !r.resource_names.is_empty() && r.resources.is_empty();
        if self.resources.iter().any(named) {
            faults.push(("resources.resourceNames", "need resources"));
        }
        faults
    }

    fn fits(&self, asked: &Asked<'_>) -> bool {
        let has = |list: &[String], text: &str| list.is_empty() || list.iter().any(|one| one == text);
        let in_group = self.user_groups.is_empty() || self.user_groups.iter().any(|g| asked.groups.contains(g));
        let target = asked
            .target
            .is_some_and(|target| self.request_targets.contains(&target));
        has(&self.users, asked.user)
            && in_group
            && has(&self.verbs, asked.verb)
            && (self.request_targets.is_empty() || target)
            && has(&self.clusters, asked.cluster)
            && self.fits_what(asked)
    }

    fn fits_what(&self, asked: &Asked<'_>) -> bool {
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            return asked.info.is_some_and(|info| {
                let namespace = self.namespaces.is_empty() || self.namespaces.contains(&info.namespace);
                let resource = self.resources.is_empty() || self.resources.iter().any(|r| r.fit(info));
                info.is_resource && namespace && resource
            });
        }
        let resource = asked.info.is_some_and(|info| info.is_resource);
        self.non_resource_urls.is_empty()
            || !resource && self.non_resource_urls.iter().any(|url| below(url, asked.path))
    }
}

impl AuditResources {
    fn fit(&self, info: &RequestInfo) -> bool {
        let whole = if info.subresource.is_empty() {
            info.resource.clone()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let fits = |pattern: &String| match pattern.split_once('/') {
            _ if *pattern == whole || pattern == "*" => true,
            Some(("*", part)) => !part.is_empty() && part == info.subresource,
            Some((resource, "*")) => resource == info.resource,
            _ => false,
        };
        let named = self.resource_names.is_empty() || self.resource_names.contains(&info.name);
        self.group == info.group && named && (self.resources.is_empty() || self.resources.iter().any(fits))
    }
}

/// Whether a path is what a pattern says; only a `*` at its end is special.
fn below(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => path.starts_with(begin),
        None => path == pattern,
    }
}

/// What is known of a request that rules are about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) user: &'a str,
    pub(crate) groups: &'a [String],
    pub(crate) verb: &'a str,
    /// None for what is no API, such as a login.
    pub(crate) target: Option<AuditTarget>,
    /// The connected cluster, for its API.
    pub(crate) cluster: &'a str,
    pub(crate) info: Option<&'a RequestInfo>,
    /// The path below that of the API.
    pub(crate) path: &'a str,
}

impl Asked<'_> {
    /// Whether bodies may be shown: those of other API servers go through as streams, and are theirs to audit.
    fn has_bodies(&self) -> bool {
        let secret = |info: &RequestInfo| is_secret(&info.group, &info.resource, &info.subresource);
        self.target == Some(AuditTarget::Management) && !self.info.is_some_and(secret)
    }
}

/// Whether bodies of a resource of the management API are in no event, whatever a rule says.
fn is_secret(group: &str, resource: &str, subresource: &str) -> bool {
    let kind = kinds::KINDS.iter().find(|kind| {
        let names = kind.names();
        (names.group, names.plural) == (group, resource)
    });
    SECRET.contains(&(group, resource))
        || SECRET_PARTS.contains(&subresource)
        || kind.is_some_and(|kind| kind.secret_field().is_some())
}

/// Whether objects of a kind are in no event, whatever a rule says: those that are secret, and those that nobody serves.
pub(crate) fn is_hidden(kind: &KindName) -> bool {
    let served = kinds::KINDS.iter().any(|served| served.stored_as() == kind);
    !served || is_secret(kind.group, kind.plural, "")
}

/// What a rule says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict<'a> {
    pub(crate) level: AuditLevel,
    omit: &'a [AuditStage],
}

impl Verdict<'_> {
    /// Whether there is an event of a stage.
    pub(crate) fn shows(&self, stage: AuditStage) -> bool {
        self.level > AuditLevel::None && !self.omit.contains(&stage)
    }
}

/// The rules of an installation. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AuditPolicy {
    rules: Arc<[AuditRule]>,
    pub(crate) max_body: usize,
}

impl AuditPolicy {
    /// From rules without faults, and the most bytes of a body in an event.
    pub(crate) fn new(rules: Vec<AuditRule>, max_body: usize) -> Self {
        Self {
            rules: rules.into(),
            max_body,
        }
    }

    /// Whether there is no rule.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What the first rule that fits says; none when none does.
    pub(crate) fn verdict(&self, asked: &Asked<'_>) -> Option<Verdict<'_>> {
        let rule = self.rules.iter().find(|rule| rule.fits(asked))?;
        let most = if asked.has_bodies() {
            AuditLevel::RequestResponse
        } else {
            AuditLevel::Metadata
        };
        Some(Verdict {
            level: rule.level.min(most),
            omit: &rule.omit_stages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::path;
    use crate::query::Query;
    use serde_json::{Value, json};

    fn policy(rules: Value) -> AuditPolicy {
        AuditPolicy::new(serde_json::from_value(rules).unwrap(), 1000)
    }

    /// Level for `ann` of the group `devs`, who asks the API of `target`; `-` when no rule fits.
    fn level_at(policy: &AuditPolicy, target: AuditTarget, method: &str, path: &str) -> &'static str {
        let info = path::parse(path, &method.parse().unwrap(), &Query::default()).unwrap();
        let asked = Asked {
            user: "ann",
            groups: &["devs".to_owned()],
            verb: &info.verb,
            target: Some(target),
            cluster: if target == AuditTarget::Cluster { "eu" } else { "" },
            info: Some(&info),
            path,
        };
        policy.verdict(&asked).map_or("-", |verdict| verdict.level.name())
    }

    fn level(rules: Value, method: &str, path: &str) -> &'static str {
        level_at(&policy(rules), AuditTarget::Management, method, path)
    }

    const POD: &str = "/api/v1/namespaces/a/pods/p";

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rules = json!([
            { "level": "None", "verbs": ["get"], "users": ["ann"] },
            { "level": "Request", "verbs": ["get", "delete"] },
        ]);
        assert_eq!(level(rules.clone(), "GET", POD), "None");
        assert_eq!(level(rules.clone(), "DELETE", POD), "Request");
        assert_eq!(level(rules, "PUT", POD), "-");
        assert_eq!(level(json!([]), "GET", POD), "-");
        assert_eq!(
            level(json!([{ "level": "RequestResponse" }]), "GET", "/version"),
            "RequestResponse"
        );
    }

    #[test]
    fn rules_fit_as_those_of_kubernetes_do() {
        let fits = |rule: Value, method: &str, path: &str| {
            let mut rule = rule;
            rule["level"] = "Metadata".into();
            level(json!([rule]), method, path) == "Metadata"
        };
        let core = |resources: &[&str]| json!({ "resources": [{ "group": "", "resources": resources }] });
        for (rule, method, path, want) in [
            (json!({ "users": ["ann"] }), "GET", POD, true),
            (json!({ "users": ["bob"] }), "GET", POD, false),
            (json!({ "userGroups": ["ops", "devs"] }), "GET", POD, true),
            (json!({ "userGroups": ["ops"] }), "GET", POD, false),
            (json!({ "verbs": ["list"] }), "GET", "/api/v1/pods", true),
            (json!({ "namespaces": ["a"] }), "GET", POD, true),
            (json!({ "namespaces": ["b"] }), "GET", POD, false),
            (json!({ "namespaces": [""] }), "GET", "/api/v1/nodes", true),
            (json!({ "namespaces": [""] }), "GET", "/version", false),
            (core(&["pods"]), "GET", POD, true),
            (core(&["pods"]), "GET", "/api/v1/namespaces/a/pods/p/log", false),
            (core(&["pods/log"]), "GET", "/api/v1/namespaces/a/pods/p/log", true),
            (core(&["pods/*"]), "GET", "/api/v1/namespaces/a/pods/p/log", true),
            (core(&["*/log"]), "GET", "/api/v1/namespaces/a/pods/p/log", true),
            (core(&["*/log"]), "GET", POD, false),
            (core(&["*"]), "GET", "/api/v1/namespaces/a/pods/p/log", true),
            (core(&[]), "GET", POD, true),
            (core(&[]), "GET", "/apis/apps/v1/deployments", false),
            (
                json!({ "resources": [{ "group": "apps" }] }),
                "GET",
                "/apis/apps/v1/deployments",
                true,
            ),
            (
                json!({ "resources": [{ "resources": ["pods"], "resourceNames": ["p"] }] }),
                "GET",
                POD,
                true,
            ),
            (
                json!({ "resources": [{ "resources": ["pods"], "resourceNames": ["q"] }] }),
                "GET",
                POD,
                false,
            ),
            (json!({ "nonResourceURLs": ["/version"] }), "GET", "/version", true),
            (
                json!({ "nonResourceURLs": ["/openapi*"] }),
                "GET",
                "/openapi/v3/apis",
                true,
            ),
            (json!({ "nonResourceURLs": ["/openapi"] }), "GET", "/openapi/v3", false),
            (json!({ "nonResourceURLs": ["*"] }), "GET", POD, false),
            (json!({ "requestTargets": ["Management"] }), "GET", POD, true),
            (json!({ "requestTargets": ["Cluster"] }), "GET", POD, false),
            (json!({ "clusters": ["eu"] }), "GET", POD, false),
        ] {
            assert_eq!(fits(rule.clone(), method, path), want, "{rule} {method} {path}");
        }
        let cluster = policy(json!([{ "level": "Metadata", "clusters": ["eu"], "requestTargets": ["Cluster"] }]));
        assert_eq!(level_at(&cluster, AuditTarget::Cluster, "GET", POD), "Metadata");
    }

    #[test]
    fn no_rule_shows_bodies_of_what_is_secret_or_somebody_elses() {
        let all = policy(json!([{ "level": "RequestResponse" }]));
        let of = |target, path: &str| level_at(&all, target, "POST", path);
        let api = "/apis/management.loft.sh/v1";
        assert_eq!(
            of(AuditTarget::Management, &format!("{api}/projects")),
            "RequestResponse"
        );
        for secret in [
            format!("{api}/namespaces/p-a/projectsecrets"),
            format!("{api}/namespaces/x/sharedsecrets"),
            format!("{api}/ownedaccesskeys"),
            format!("{api}/namespaces/p-a/virtualclusterinstances/v/kubeconfig"),
            format!("{api}/clusters/eu/accesskey"),
            "/apis/storage.loft.sh/v1/accesskeys".to_owned(),
            "/api/v1/namespaces/a/secrets".to_owned(),
        ] {
            assert_eq!(of(AuditTarget::Management, &secret), "Metadata", "{secret}");
        }
        assert_eq!(of(AuditTarget::ProjectVCluster, POD), "Metadata");
        assert_eq!(of(AuditTarget::Cluster, POD), "Metadata");
    }

    #[test]
    fn stages_can_be_left_out() {
        let verdict = |level, omit| Verdict { level, omit };
        let omit = [AuditStage::RequestReceived];
        assert!(!verdict(AuditLevel::Metadata, &omit).shows(AuditStage::RequestReceived));
        assert!(verdict(AuditLevel::Metadata, &omit).shows(AuditStage::ResponseComplete));
        assert!(!verdict(AuditLevel::None, &[]).shows(AuditStage::ResponseComplete));
    }

    #[test]
    fn faults() {
        let faults = |rule: Value| serde_json::from_value::<AuditRule>(rule).unwrap().faults().len();
        assert_eq!(
            faults(json!({ "level": "None", "nonResourceURLs": ["/healthz*", "*"] })),
            0
        );
        assert_eq!(faults(json!({ "level": "None", "nonResourceURLs": ["/a*b"] })), 1);
        assert_eq!(
            faults(json!({ "level": "None", "nonResourceURLs": ["/x"], "namespaces": ["a"] })),
            1
        );
        assert_eq!(
            faults(json!({ "level": "None", "resources": [{ "resourceNames": ["a"] }] })),
            1
        );
        let unknown = json!({ "level": "None", "user": ["a"] });
        assert!(serde_json::from_value::<AuditRule>(unknown).is_err());
    }
}
