//! From a path to the part of the gateway that answers. One router, one table; what is not in it needs credentials too.

use crate::oidc::Place;
use crate::query::decode;
use hanse_api::name::check_label;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Alive, for probes. Needs no credentials.
    Health(Probe),
    /// Version of the program. Needs no credentials.
    Version,
    /// A step of a login. Needs no credentials where there are identity providers; elsewhere it is as nothing.
    Login(Place),
    /// Metrics, for members of the admin group.
    Metrics,
    /// A backup, for administrators.
    Backup,
    /// Restore of one tenant, for administrators.
    Restore,
    /// The management API; `rest` is the path below it.
    Management { rest: String },
    /// The API of a tenant cluster.
    Tenant {
        project: String,
        name: String,
        rest: String,
    },
    /// The API of a connected cluster.
    Cluster { name: String, rest: String },
    /// Nothing.
    Unknown,
}

/// Kind of a health probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// `/healthz` and `/livez`: the process works.
    Live,
    /// `/readyz`: it can serve.
    Ready,
}

impl Route {
    /// Whether no credentials are needed, whatever is configured, and the answer comes also when nothing else works.
    pub(crate) const fn is_public(&self) -> bool {
        matches!(self, Self::Health(_) | Self::Version)
    }

    /// Name for metrics.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::Health(_) => "health",
            Self::Version => "version",
            Self::Login(_) => "login",
            Self::Metrics => "metrics",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Management { .. } => "management",
            Self::Tenant { .. } => "tenant",
            Self::Cluster { .. } => "cluster",
            Self::Unknown => "unknown",
        }
    }
}

/// Finds the route of a raw path (without query).
pub(crate) fn route(path: &str) -> Route {
    match path {
        "/healthz" | "/livez" => return Route::Health(Probe::Live),
        "/readyz" => return Route::Health(Probe::Ready),
        "/version" | "/version/" => return Route::Version,
        "/metrics" => return Route::Metrics,
        "/backup" => return Route::Backup,
        "/restore" => return Route::Restore,
        _ => {}
    }
    let Some(below) = path.strip_prefix("/kubernetes/") else {
        return Place::of(path).map_or(Route::Unknown, Route::Login);
    };
    let (area, rest) = split(below);
    match area {
        "management" => Route::Management { rest: rest.to_owned() },
        "cluster" => {
            let (name, rest) = split(rest.strip_prefix('/').unwrap_or_default());
            label(name).map_or(Route::Unknown, |name| Route::Cluster {
                name,
                rest: rest.to_owned(),
            })
        }
        "project" => project(rest).unwrap_or(Route::Unknown),
        _ => Route::Unknown,
    }
}

fn project(rest: &str) -> Option<Route> {
    let (project, rest) = split(rest.strip_prefix('/')?);
    let (area, rest) = split(rest.strip_prefix('/')?);
    let (name, rest) = split(rest.strip_prefix('/')?);
    let (project, name) = (label(project)?, label(name)?);
    (area == "virtualcluster").then(|| Route::Tenant {
        project,
        name,
        rest: rest.to_owned(),
    })
}

/// The first segment, and what follows it with its slash.
fn split(path: &str) -> (&str, &str) {
    path.find('/').map_or((path, ""), |at| path.split_at(at))
}

/// A segment that is a DNS label once decoded.
fn label(segment: &str) -> Option<String> {
    decode(segment, false).ok().filter(|text| check_label(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::Step;

    #[test]
    fn known_paths() {
        let management = |rest: &str| Route::Management { rest: rest.into() };
        let cluster = |rest: &str| Route::Cluster {
            name: "eu".into(),
            rest: rest.into(),
        };
        let tenant = |rest: &str| Route::Tenant {
            project: "p".into(),
            name: "v".into(),
            rest: rest.into(),
        };
        for (path, want) in [
            ("/healthz", Route::Health(Probe::Live)),
            ("/backup", Route::Backup),
            ("/restore", Route::Restore),
            ("/readyz", Route::Health(Probe::Ready)),
            ("/version", Route::Version),
            ("/metrics", Route::Metrics),
            ("/login", Route::Login(Place::Choice)),
            ("/login/device", Route::Login(Place::DeviceCode)),
            ("/spaces", Route::Login(Place::Done)),
            ("/auth/info", Route::Login(Place::Info)),
            ("/auth/exchange", Route::Login(Place::Exchange)),
            ("/auth/device/start", Route::Login(Place::DeviceStart)),
            ("/auth/device/poll", Route::Login(Place::DevicePoll)),
            ("/auth/device/confirm", Route::Login(Place::DeviceConfirm)),
            ("/auth/corp/login", Route::Login(Place::Begin("corp".into()))),
            ("/auth/corp/callback", Route::Login(Place::Callback("corp".into()))),
            (
                "/oidc/.well-known/openid-configuration",
                Route::Login(Place::Issuer(Step::Discovery)),
            ),
            ("/oidc/jwks", Route::Login(Place::Issuer(Step::Keys))),
            ("/oidc/authorize", Route::Login(Place::Issuer(Step::Authorize))),
            ("/oidc/token", Route::Login(Place::Issuer(Step::Token))),
            ("/oidc/userinfo", Route::Login(Place::Issuer(Step::UserInfo))),
            ("/oidc/revoke", Route::Login(Place::Issuer(Step::Revoke))),
            ("/kubernetes/management", management("")),
            ("/kubernetes/management/apis", management("/apis")),
            ("/kubernetes/cluster/eu", cluster("")),
            ("/kubernetes/cluster/eu/api/v1/pods", cluster("/api/v1/pods")),
            ("/kubernetes/project/p/virtualcluster/v", tenant("")),
            ("/kubernetes/project/p/virtualcluster/v/", tenant("/")),
            ("/kubernetes/project/p/virtualcluster/%76/api//x", tenant("/api//x")),
        ] {
            assert_eq!(route(path), want, "{path}");
        }
    }

    #[test]
    fn unknown_paths() {
        for unknown in [
            "",
            "/",
            "/kubernetes",
            "/kubernetes/",
            "/kubernetes/cluster",
            "/kubernetes/cluster/",
            "/kubernetes/cluster/..",
            "/kubernetes/cluster/a%2Fb/x",
            "/kubernetes/managementx",
            "/kubernetes/project/p",
            "/kubernetes/project/p/space/v/",
            "/kubernetes/project//virtualcluster/v",
            "/kubernetes//management",
            "/Healthz",
            "/healthz/",
            "/metrics/x",
            "/backup/",
            "/restore/x",
            "/login/",
            "/login/x",
            "/auth",
            "/auth/",
            "/auth/corp",
            "/auth/corp/login/",
            "/auth/corp/callback/x",
            "/auth/CORP/login",
            "/auth/../login",
            "/auth/device/x",
            "/oidc",
            "/oidc/",
            "/oidc/token/",
            "/oidc/.well-known",
            "/oidc/../login",
            "/kubernetes/project/p/virtualcluster/..%2f..",
            "/kubernetes/project/P/virtualcluster/v",
        ] {
            assert_eq!(route(unknown), Route::Unknown, "{unknown}");
        }
    }
}
