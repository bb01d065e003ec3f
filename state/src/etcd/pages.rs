//! What etcd shows to probes, scrapers and people beside gRPC, on the same port: `/health`, `/livez`, `/readyz`, `/version` and
//! `/metrics`, over HTTP/1.1 and HTTP/2.

use super::{STORAGE_VERSION, Service, VERSION, metrics};
use crate::pb::{self, AlarmType};
use crate::store::{Access, Role};
use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use hanse_runtime::clock::timeout;
use http::{HeaderValue, Method, StatusCode, header};
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::body::Body;
use tower::Layer;

/// How long a check waits for a read; etcd's request timeout at its default election timeout.
const CHECK_LIMIT: Duration = Duration::from_secs(7);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

type Response = http::Response<Body>;

/// Puts the pages in front of the gRPC services.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) service: Service,
    pub(super) access: Access,
}

impl<S> Layer<S> for Pages {
    type Service = WithPages<S>;

    fn layer(&self, inner: S) -> WithPages<S> {
        WithPages {
            pages: self.clone(),
            inner,
        }
    }
}

/// gRPC services with pages in front.
#[derive(Clone)]
pub(super) struct WithPages<S> {
    pages: Pages,
    inner: S,
}

impl<S> tower::Service<http::Request<Body>> for WithPages<S>
where
    S: tower::Service<http::Request<Body>, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let page = Page::of(request.uri().path());
        // Calls of gRPC are always POST, and their paths have a dot in the service's name.
        if request.method() == Method::POST && page.is_none() {
            return Either::Left(self.inner.call(request));
        }
        let (pages, method) = (self.pages.clone(), request.method().clone());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let work = async move {
            Ok(match page {
                None => answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned()),
                Some(_) if method != Method::GET && method != Method::HEAD => not_allowed(),
                Some(page) => pages.show(page, &query).await,
            })
        };
        Either::Right(work.boxed())
    }
}

fn answer(status: StatusCode, kind: HeaderValue, text: String) -> Response {
    let mut response = Response::new(Body::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn not_allowed() -> Response {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n".to_owned());
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Health,
    Version,
    Metrics,
    /// Some checks, and what etcd's page of this path is for.
    Checks(&'static [Check]),
}

/// One check of `/livez` and `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Check {
    const fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }
}

impl Page {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/health" => return Some(Self::Health),
            "/version" => return Some(Self::Version),
            "/metrics" => return Some(Self::Metrics),
            "/livez" => return Some(Self::Checks(LIVE)),
            "/readyz" => return Some(Self::Checks(READY)),
            _ => {}
        }
        let (checks, name) = match path.split_once("z/")? {
            ("/live", name) => (LIVE, name),
            ("/ready", name) => (READY, name),
            _ => return None,
        };
        let at = checks.iter().position(|check| check.name() == name)?;
        checks.get(at..=at).map(Self::Checks)
    }
}

/// The values that a query gives for a name; they are plain words, so nothing is decoded.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> + 'a {
    query.split('&').filter_map(move |pair| match pair.split_once('=') {
        Some((key, value)) => (key == name).then_some(value),
        None => (pair == name).then_some(""),
    })
}

impl Pages {
    async fn show(&self, page: Page, query: &str) -> Response {
        match page {
            Page::Health => self.health(query).await,
            Page::Version => {
                let text = format!(
                    "{{\"etcdserver\":\"{VERSION}\",\"etcdcluster\":\"{STORAGE_VERSION}\",\"storage\":\"{STORAGE_VERSION}\"}}"
                );
                answer(StatusCode::OK, JSON, text)
            }
            Page::Metrics => answer(StatusCode::OK, METRICS, metrics::text(&self.service, &self.access)),
            Page::Checks(checks) => self.checks(checks, query).await,
        }
    }

    /// etcd's oldest probe. Its JSON comes as text, as etcd's does when nobody sets another type.
    async fn health(&self, query: &str) -> Response {
        let serializable = values(query, "serializable").any(|value| value == "true");
        let excluded: Vec<&str> = values(query, "exclude").collect();
        let fault = match self.alarm(|kind| !excluded.contains(&kind.as_str_name())) {
            Some(kind) => Some(format!("ALARM {}", kind.as_str_name())),
            None if !serializable && !self.service.store.has_leader() => Some("RAFT NO LEADER".to_owned()),
            None => self
                .read(serializable)
                .await
                .err()
                .map(|fault| format!("RANGE ERROR:{fault}")),
        };
        match fault {
            None => answer(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#.to_owned()),
            Some(fault) => {
                // Texts of our own errors have no character that JSON would want escaped but the quotes of some.
                let fault = fault.replace('\\', "\\\\").replace('"', "\\\"");
                let text = format!("{{\"health\":\"false\",\"reason\":\"{fault}\"}}\n");
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
        }
    }

    async fn checks(&self, checks: &[Check], query: &str) -> Response {
        let mut text = String::new();
        let mut failed = false;
        for check in checks {
            let name = check.name();
            // A page of one check shows that one whatever is excluded.
            if checks.len() > 1 && values(query, "exclude").any(|value| value == name) {
                continue;
            }
            match self.check(*check).await {
                Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
                Err(fault) => {
                    failed = true;
                    text.push_str(&format!("[-]{name} failed: {fault}\n"));
                }
            }
        }
        if failed {
            return answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, text + "\n");
        }
        let shown = if values(query, "verbose").next().is_some() {
            text
        } else {
            String::new()
        };
        answer(StatusCode::OK, TEXT, shown + "ok\n")
    }

    async fn check(&self, check: Check) -> Result<(), String> {
        match check {
            Check::DataCorruption => match self.alarm(|kind| kind == AlarmType::Corrupt) {
                Some(_) => Err("alarm activated: CORRUPT".to_owned()),
                None => Ok(()),
            },
            Check::SerializableRead => self.read(true).await,
            Check::LinearizableRead => self.read(false).await,
            Check::NonLearner if self.service.store.status().role == Role::Learner => {
                Err("not supported for learner".to_owned())
            }
            Check::NonLearner => Ok(()),
        }
    }

    fn alarm(&self, wanted: impl Fn(AlarmType) -> bool) -> Option<AlarmType> {
        let alarms = self.service.store.machine().alarms(&self.access).unwrap_or_default();
        let kinds = alarms.iter().filter_map(|alarm| AlarmType::try_from(alarm.alarm).ok());
        kinds.into_iter().find(|kind| wanted(*kind))
    }

    /// Whether keys can be read; which ones does not matter.
    async fn read(&self, serializable: bool) -> Result<(), String> {
        let request = pb::RangeRequest {
            serializable,
            ..super::nothing()
        };
        let read = self.service.store.range(&self.access, request);
        match timeout(self.service.clock.as_ref(), CHECK_LIMIT, read).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.status().message().to_owned()),
            Err(elapsed) => Err(elapsed.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_etcds() {
        assert_eq!(Page::of("/health"), Some(Page::Health));
        assert_eq!(Page::of("/readyz"), Some(Page::Checks(READY)));
        let one = &[Check::LinearizableRead];
        assert_eq!(Page::of("/readyz/linearizable_read"), Some(Page::Checks(one)));
        for path in [
            "/",
            "/livez/linearizable_read",
            "/readyz/",
            "/healthz",
            "/etcdserverpb.KV/Range",
        ] {
            assert_eq!(Page::of(path), None, "{path}");
        }
        let query = "verbose&exclude=NOSPACE&exclude=CORRUPT";
        assert_eq!(values(query, "exclude").collect::<Vec<_>>(), ["NOSPACE", "CORRUPT"]);
        assert_eq!(values(query, "verbose").count(), 1);
        assert_eq!(values(query, "serializable").count(), 0);
    }
}
