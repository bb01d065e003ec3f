//! What a request for a Kubernetes API asks for, read from its path by strict rules.
//!
//! An API server splits the *decoded* path, so a gateway that looks at the raw one can be talked past. Here every
//! segment is decoded first, anything that could be read in two ways is refused, and what goes upstream is written anew
//! from the decoded segments. Only the part behind `/proxy/` of pods, services and nodes is passed as raw bytes: it
//! belongs to the application there.

use crate::query::{Query, decode};
use http::Method;

/// Longest path that is looked at.
const MAX_PATH: usize = 8 * 1024;

/// A path that is refused; the text is for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadPath(pub(crate) String);

/// What a request asks for, in the words of a Kubernetes authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// The path to send upstream.
    pub(crate) path: String,
    /// Whether it names a resource (and not, say, `/version`).
    pub(crate) is_resource: bool,
    /// Kubernetes verb.
    pub(crate) verb: String,
    /// API group, empty for core.
    pub(crate) group: String,
    /// API version.
    pub(crate) version: String,
    /// Namespace, or empty.
    pub(crate) namespace: String,
    /// Plural resource, or empty.
    pub(crate) resource: String,
    /// Subresource, or empty.
    pub(crate) subresource: String,
    /// Object name, or empty.
    pub(crate) name: String,
    /// Whether segments follow the subresource.
    pub(crate) deeper: bool,
}

impl RequestInfo {
    /// Whether the answer may take as long as it likes.
    pub(crate) fn long_running(&self) -> bool {
        self.is_resource
            && (matches!(self.verb.as_str(), "watch" | "proxy")
                || matches!(
                    self.subresource.as_str(),
                    "attach" | "exec" | "proxy" | "log" | "portforward"
                ))
    }

    /// Whether the request is handed on to an application behind the API server.
    pub(crate) fn is_app_proxy(&self) -> bool {
        self.is_resource
            && self.group.is_empty()
            && self.subresource == "proxy"
            && matches!(self.resource.as_str(), "pods" | "services" | "nodes")
    }

    /// Whether a protocol upgrade makes sense here.
    pub(crate) fn may_upgrade(&self) -> bool {
        let streams = self.group.is_empty()
            && self.resource == "pods"
            && matches!(self.subresource.as_str(), "exec" | "attach" | "portforward");
        self.is_resource && (streams || self.is_app_proxy() || self.verb == "watch")
    }

    /// Verbs that the caller must have: a request that runs something counts as `create`, whatever its method.
    pub(crate) fn verbs(&self) -> Vec<&str> {
        let runs =
            matches!(self.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") || self.verb == "proxy";
        if self.is_resource && runs && self.verb != "create" {
            vec![&self.verb, "create"]
        } else {
            vec![&self.verb]
        }
    }
}

/// Reads the path (as it stands in the request line, without query) of a request for a Kubernetes API.
pub(crate) fn parse(raw: &str, method: &Method, query: &Query) -> Result<RequestInfo, BadPath> {
    let (segments, path) = canonical(raw)?;
    let mut info = RequestInfo {
        path,
        verb: method_verb(method)?.to_owned(),
        ..Default::default()
    };
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let rest = match parts.split_first() {
        Some((&"api", rest)) if rest.len() >= 2 => {
            rest[0].clone_into(&mut info.version);
            &rest[1..]
        }
        Some((&"apis", rest)) if rest.len() >= 3 => {
            rest[0].clone_into(&mut info.group);
            rest[1].clone_into(&mut info.version);
            &rest[2..]
        }
        _ => {
            // Paths that are no resource keep the method as their verb, as Kubernetes has it.
            method.as_str().to_ascii_lowercase().clone_into(&mut info.verb);
            return Ok(info);
        }
    };
    info.is_resource = true;
    resource(&mut info, rest)?;
    if info.name.is_empty() && info.verb == "get" {
        info.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
        info.name = named_by_selector(query).unwrap_or_default();
    }
    if info.name.is_empty() && info.verb == "delete" {
        "deletecollection".clone_into(&mut info.verb);
    }
    Ok(info)
}

fn resource(info: &mut RequestInfo, mut rest: &[&str]) -> Result<(), BadPath> {
    if let Some((&special @ ("watch" | "proxy"), after)) = rest.split_first() {
        if after.is_empty() {
            return Err(BadPath(format!("path {:?} ends behind {special:?}", info.path)));
        }
        special.clone_into(&mut info.verb);
        rest = after;
    }
    if rest[0] == "namespaces" && rest.len() > 1 {
        rest[1].clone_into(&mut info.namespace);
        if rest.len() > 2 && !matches!(rest[2], "status" | "finalize") {
            rest = &rest[2..];
        }
    }
    rest[0].clone_into(&mut info.resource);
    if let Some(name) = rest.get(1) {
        (*name).clone_into(&mut info.name);
    }
    if let Some(subresource) = rest.get(2).filter(|_| info.verb != "proxy") {
        (*subresource).clone_into(&mut info.subresource);
    }
    info.deeper = rest.len() > 3;
    Ok(())
}

fn named_by_selector(query: &Query) -> Option<String> {
    let mut terms = query.text("fieldSelector")?.split(',');
    terms.find_map(|t| {
        let (field, value) = t.split_once("==").or_else(|| t.split_once('='))?;
        (field == "metadata.name").then(|| value.to_owned())
    })
}

fn method_verb(method: &Method) -> Result<&'static str, BadPath> {
    match method.as_str() {
        "GET" | "HEAD" => Ok("get"),
        "POST" => Ok("create"),
        "PUT" => Ok("update"),
        "PATCH" => Ok("patch"),
        "DELETE" => Ok("delete"),
        // Browsers ask so before a cross-origin call; only applications behind the proxy know an answer.
        "OPTIONS" => Ok("options"),
        other => Err(BadPath(format!("method {other:?} is not served"))),
    }
}

/// Decoded segments and the path written anew. A raw tail is part of the path only.
fn canonical(raw: &str) -> Result<(Vec<String>, String), BadPath> {
    if raw.len() > MAX_PATH {
        return Err(BadPath(format!("the path is longer than {MAX_PATH} bytes")));
    }
    let Some(mut rest) = raw.strip_prefix('/') else {
        return if raw.is_empty() {
            Ok((Vec::new(), "/".into()))
        } else {
            Err(BadPath("the path has no leading /".into()))
        };
    };
    let (mut segments, mut path) = (Vec::new(), String::with_capacity(raw.len()));
    while !rest.is_empty() {
        let (segment, after) = rest.split_once('/').map_or((rest, None), |(s, a)| (s, Some(a)));
        let decoded = decode(segment, false).map_err(BadPath)?;
        check_segment(&decoded).map_err(|why| BadPath(format!("path segment {segment:?} {why}")))?;
        path.push('/');
        encode_segment(&decoded, &mut path);
        segments.push(decoded);
        match after {
            Some(tail) if behind_app_proxy(&segments) => {
                path.push('/');
                path.push_str(tail);
                return Ok((segments, path));
            }
            Some("") => path.push('/'),
            Some(_) | None => {}
        }
        rest = after.unwrap_or_default();
    }
    if path.is_empty() {
        path.push('/');
    }
    Ok((segments, path))
}

fn check_segment(decoded: &str) -> Result<(), &'static str> {
    match decoded {
        "" => Err("is empty"),
        "." | ".." => Err("is a dot segment"),
        text if text.contains(['/', '\\', '%', ';']) => {
            Err("holds a character that could be read in two ways (/ \\ % ;)")
        }
        text if text.chars().any(char::is_control) => Err("holds a control character"),
        _ => Ok(()),
    }
}

fn behind_app_proxy(segments: &[String]) -> bool {
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    matches!(
        parts[..],
        ["api", "v1", "namespaces", _, "pods" | "services", _, "proxy"] | ["api", "v1", "nodes", _, "proxy"]
    )
}

fn encode_segment(segment: &str, into: &mut String) {
    for byte in segment.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte);
        if plain {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, path: &str) -> RequestInfo {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        parse(path, &method.parse().unwrap(), &Query::parse(query).unwrap()).unwrap()
    }

    /// method, path, verb, group, namespace, resource, subresource, name; `-` is nothing.
    const RESOURCES: &str = "
        GET /api/v1/namespaces list - - namespaces - -
        GET /api/v1/namespaces/a get - a namespaces - a
        PUT /api/v1/namespaces/a/finalize update - a namespaces finalize a
        GET /api/v1/namespaces/a/pods list - a pods - -
        GET /api/v1/namespaces/a/pods?watch= watch - a pods - -
        GET /api/v1/namespaces/a/pods?watch=False list - a pods - -
        GET /api/v1/watch/namespaces/a/pods watch - a pods - -
        GET /api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dx list - a pods - x
        HEAD /api/v1/namespaces/a/pods/x get - a pods - x
        GET /api/v1/namespaces/a/pods/x/exec?command=sh get - a pods exec x
        POST /api/v1/namespaces/a/pods/x/exec create - a pods exec x
        DELETE /apis/apps/v1/namespaces/a/deployments deletecollection apps a deployments - -
        PATCH /apis/apps/v1/namespaces/a/deployments/d/scale patch apps a deployments scale d
        GET /api/v1/nodes/n/proxy/run/x get - - nodes proxy n
        GET /api/v1/proxy/nodes/n proxy - - nodes - n
    ";

    #[test]
    fn reads_what_an_api_server_reads() {
        for line in RESOURCES.lines().filter(|l| !l.trim().is_empty()) {
            let columns: Vec<&str> = line.split_whitespace().map(|c| c.trim_matches('-')).collect();
            let [method, path, want @ ..] = columns.as_slice() else {
                panic!("{line}");
            };
            let got = info(method, path);
            let have = [
                &*got.verb,
                &*got.group,
                &*got.namespace,
                &*got.resource,
                &*got.subresource,
                &*got.name,
            ];
            assert_eq!(have, want, "{method} {path}");
            assert!(got.is_resource, "{path}");
        }
    }

    #[test]
    fn paths_that_are_no_resource() {
        for path in [
            "",
            "/",
            "/version",
            "/api",
            "/api/v1",
            "/apis/apps/v1",
            "/openapi/v3/apis/apps/v1",
            "/healthz",
            "/apis/",
        ] {
            let got = info("GET", path);
            assert!(!got.is_resource, "{path}");
            assert_eq!(got.path, if path.is_empty() { "/" } else { path });
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for bad in [
            "/api/v1/namespaces/a%2Fpods",
            "/api/v1/namespaces/a%5cb",
            "/api/v1/namespaces/a%00",
            "/api/v1/a%25b",
            "/api/v1/..",
            "/api/v1/../../x",
            "/api/v1/%2e%2e/secrets",
            "/api/v1/%2E",
            "/api/./v1",
            "/api//v1",
            "//api/v1",
            "/api/v1/a;b",
            "/api/v1/a%3bb",
            "/api/v1/a\\b",
            "/api/v1/%ff",
            "/api/v1/%",
            "/api/v1/a%0ab",
            "api/v1",
            "/api/v1//",
        ] {
            assert!(parse(bad, &Method::GET, &Query::default()).is_err(), "{bad}");
        }
        assert!(parse("/api/v1", &Method::TRACE, &Query::default()).is_err());
        assert!(parse("/api/v1/watch", &Method::GET, &Query::default()).is_err());
    }

    #[test]
    fn the_tail_behind_an_application_proxy_is_passed_raw() {
        for path in [
            "/api/v1/namespaces/a/services/https:web:443/proxy/x%2Fy/..%2e//z;a",
            "/api/v1/namespaces/a/pods/p/proxy/",
            "/api/v1/nodes/n/proxy//metrics",
        ] {
            let got = info("GET", path);
            assert_eq!(got.path, path);
            assert!(got.is_app_proxy() && got.long_running() && got.may_upgrade(), "{path}");
        }
        // Only there: the same tail elsewhere is refused.
        assert!(
            parse(
                "/apis/x/v1/namespaces/a/pods/p/proxy/a%2Fb",
                &Method::GET,
                &Query::default()
            )
            .is_err()
        );
        // And what stands before it is as strict as ever.
        assert!(
            parse(
                "/api/v1/namespaces/a%2Fb/pods/p/proxy/x",
                &Method::GET,
                &Query::default()
            )
            .is_err()
        );
    }

    #[test]
    fn written_anew() {
        assert_eq!(
            info("GET", "/api/v1/namespaces/%61%20b/pods/system%3Ax").path,
            "/api/v1/namespaces/a%20b/pods/system:x"
        );
    }

    #[test]
    fn what_runs_something_counts_as_create() {
        assert_eq!(
            info("GET", "/api/v1/namespaces/a/pods/x/exec").verbs(),
            ["get", "create"]
        );
        assert_eq!(info("GET", "/api/v1/nodes/n/proxy/run").verbs(), ["get", "create"]);
        assert_eq!(info("GET", "/api/v1/proxy/nodes/n").verbs(), ["proxy", "create"]);
        assert_eq!(info("POST", "/api/v1/namespaces/a/pods/x/exec").verbs(), ["create"]);
        assert_eq!(info("GET", "/api/v1/namespaces/a/pods/x/log").verbs(), ["get"]);
    }

    #[test]
    fn upgrades_only_where_they_make_sense() {
        for yes in [
            "/api/v1/namespaces/a/pods/x/exec",
            "/api/v1/namespaces/a/pods?watch=1",
            "/api/v1/namespaces/a/pods/x/portforward",
        ] {
            assert!(info("GET", yes).may_upgrade(), "{yes}");
        }
        for no in [
            "/api/v1/namespaces/a/pods",
            "/version",
            "/api/v1/namespaces/a/pods/x/log",
            "/apis/x/v1/namespaces/a/pods/x/exec",
        ] {
            assert!(!info("GET", no).may_upgrade(), "{no}");
        }
    }
}
