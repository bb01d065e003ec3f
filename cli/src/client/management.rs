//! The management API as the verbs use it: get, list, create, delete, with faults in the user's words.

use super::http::{Call, Http, Reply};
use super::retry;
use crate::error::{Error, Kind, Result};
use ::http::Method;
use bytes::Bytes;
use hanse_api::kinds::KindName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Objects per page of a list.
const PAGE: usize = 500;
/// Pages of one list: a server that never ends one is cut off.
const PAGES_MAX: usize = 1000;

/// Told each page of a list.
pub(crate) type EachPage<'a> = dyn FnMut(&mut Value) -> Result<()> + 'a;

/// A client of the management API.
#[derive(Clone)]
pub(crate) struct Management {
    http: Http,
}

/// Where objects of `kind` are, or one of them.
pub(crate) fn path(kind: &KindName, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = format!("/kubernetes/management/apis/{}/{}", kind.group, kind.version);
    if let Some(namespace) = namespace {
        path.push_str(&format!("/namespaces/{namespace}"));
    }
    path.push('/');
    path.push_str(kind.plural);
    if let Some(name) = name {
        path.push('/');
        path.push_str(name);
    }
    path
}

impl Management {
    /// Over `http`.
    pub(crate) const fn new(http: Http) -> Self {
        Self { http }
    }

    /// The client below.
    pub(crate) const fn http(&self) -> &Http {
        &self.http
    }

    /// The object, or `None` when there is none.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        kind: &KindName,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<T>> {
        let reply = self.send(&Call::get(path(kind, namespace, Some(name)))).await?;
        match reply.status.as_u16() {
            404 => Ok(None),
            _ => self.parse(&self.checked(reply)?).map(Some),
        }
    }

    /// What is at `path`.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let reply = self.send(&Call::get(path)).await?;
        self.parse(&self.checked(reply)?)
    }

    /// All objects.
    pub(crate) async fn list<T: DeserializeOwned>(&self, kind: &KindName, namespace: Option<&str>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        let mut each = |list: &mut Value| {
            if let Some(Value::Array(page)) = list.get_mut("items").map(Value::take) {
                for item in page {
                    items.push(serde_json::from_value(item).map_err(|e| self.not_understood(&e))?);
                }
            }
            Ok(())
        };
        self.each_page(&path(kind, namespace, None), None, &mut each).await?;
        Ok(items)
    }

    /// All objects of a cluster-scoped kind, page by page; `first` is added to the query of the first page.
    pub(crate) async fn pages(&self, kind: &KindName, first: Option<&str>, each: &mut EachPage<'_>) -> Result<()> {
        self.each_page(&path(kind, None, None), first, each).await
    }

    async fn each_page(&self, base: &str, first: Option<&str>, each: &mut EachPage<'_>) -> Result<()> {
        let mut token = first.map(|query| format!("&{query}")).unwrap_or_default();
        for _page in 0..PAGES_MAX {
            let mut list: Value = self.fetch(&format!("{base}?limit={PAGE}{token}")).await?;
            each(&mut list)?;
            match list
                .pointer("/metadata/continue")
                .and_then(Value::as_str)
                .filter(|t| !t.is_empty())
            {
                Some(next) => token = format!("&continue={}", escape(next)),
                None => return Ok(()),
            }
        }
        Err(Error::failed(format!("{} sent a list without end", self.http.base())))
    }

    /// Creates `object` and gives back what the server made of it.
    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        kind: &KindName,
        namespace: Option<&str>,
        object: &impl Serialize,
    ) -> Result<T> {
        let reply = self.post(path(kind, namespace, None), object).await?;
        self.parse(&reply)
    }

    /// Posts `body` to `path`, such as a subresource's.
    pub(crate) async fn post(&self, path: String, body: &impl Serialize) -> Result<Reply> {
        let body = serde_json::to_vec(body).map_err(|e| Error::failed(format!("cannot write a request: {e}")))?;
        let call = Call {
            method: Method::POST,
            path,
            body: Some(Bytes::from(body)),
        };
        let reply = self.send(&call).await.map_err(|error| match error.kind() {
            Kind::Unreachable if error.to_string().contains("no whole answer") => error
                .hint("it is not known whether the request had an effect: look with `hanse list` before trying again"),
            _ => error,
        })?;
        self.checked(reply)
    }

    /// Writes an object back that was read before; a conflict when it changed since.
    pub(crate) async fn replace(
        &self,
        kind: &KindName,
        namespace: Option<&str>,
        name: &str,
        object: &impl Serialize,
    ) -> Result<()> {
        let body = serde_json::to_vec(object).map_err(|e| Error::failed(format!("cannot write a request: {e}")))?;
        let call = Call {
            method: Method::PUT,
            path: path(kind, namespace, Some(name)),
            body: Some(Bytes::from(body)),
        };
        let reply = self.send(&call).await?;
        self.checked(reply).map(|_| ())
    }

    /// Asks for the object's deletion; `false` when there was none.
    pub(crate) async fn delete(&self, kind: &KindName, namespace: Option<&str>, name: &str) -> Result<bool> {
        let call = Call {
            method: Method::DELETE,
            path: path(kind, namespace, Some(name)),
            body: None,
        };
        let (outcome, repeated) = retry::send(&self.http, &call).await;
        let reply = outcome.map_err(|fault| self.http.explain(&fault))?;
        if reply.status.as_u16() == 404 {
            // The first try may have deleted it and lost only its answer.
            return Ok(repeated);
        }
        self.checked(reply).map(|_| true)
    }

    /// An exchange with safe repeats.
    pub(crate) async fn send(&self, call: &Call) -> Result<Reply> {
        let (outcome, _repeated) = retry::send(&self.http, call).await;
        outcome.map_err(|fault| self.http.explain(&fault))
    }

    /// The reply if it is a success, otherwise what it says.
    pub(crate) fn checked(&self, reply: Reply) -> Result<Reply> {
        if reply.status.is_success() {
            Ok(reply)
        } else {
            Err(refusal(&self.http.base().to_string(), &reply))
        }
    }

    /// The body as a value.
    pub(crate) fn parse<T: DeserializeOwned>(&self, reply: &Reply) -> Result<T> {
        serde_json::from_slice(&reply.body).map_err(|e| self.not_understood(&e))
    }

    fn not_understood(&self, error: &serde_json::Error) -> Error {
        Error::failed(format!(
            "{} sent an answer that this version does not understand: {error}",
            self.http.base()
        ))
        .hint("compare the versions with `hanse version`")
    }
}

/// What a refusal says, in the words of its Status where it has one.
pub(crate) fn refusal(server: &str, reply: &Reply) -> Error {
    /// Of an answer that is no Status, as much as fits a line.
    const EXCERPT: usize = 200;
    let status: Option<Value> = serde_json::from_slice(&reply.body).ok();
    let said = status.as_ref().and_then(|s| s.get("message")).and_then(Value::as_str);
    let code = reply.status.as_u16();
    let message = match said {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => {
            let text = String::from_utf8_lossy(&reply.body);
            let text: String = text.trim().chars().filter(|c| !c.is_control()).take(EXCERPT).collect();
            if text.is_empty() {
                format!("HTTP {code}")
            } else {
                format!("HTTP {code}: {text}")
            }
        }
    };
    match code {
        401 => Error::new(
            Kind::Denied,
            format!("{server} does not accept the access key: {message}"),
        )
        .hint("log in again: `hanse login URL`"),
        403 => Error::new(Kind::Denied, format!("{server}: {message}")).hint("ask an administrator for the right"),
        404 => Error::not_found(format!("{server}: {message}")),
        409 => Error::new(Kind::Conflict, message),
        400 | 413 | 415 | 422 => Error::usage(message),
        429 | 502..=504 => Error::new(Kind::Unreachable, format!("{server} cannot serve it now: {message}"))
            .hint("try again; `hanse status` shows which regions answer"),
        _ => Error::failed(format!("{server}: {message}")),
    }
}

/// `text` for a query string: everything outside the unreserved characters of RFC 3986 as `%XX`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::{Status, kinds};

    fn reply(code: u16, body: &str) -> Reply {
        Reply {
            status: ::http::StatusCode::from_u16(code).unwrap(),
            body: Bytes::from(body.to_owned()),
        }
    }

    #[test]
    fn paths() {
        assert_eq!(
            path(&kinds::VIRTUAL_CLUSTER_INSTANCES, Some("p-default"), Some("demo")),
            "/kubernetes/management/apis/management.loft.sh/v1/namespaces/p-default/virtualclusterinstances/demo"
        );
        assert_eq!(
            path(&kinds::SERVERS, None, None),
            "/kubernetes/management/apis/hanse.dev/v1/servers"
        );
    }

    #[test]
    fn refusals_keep_the_words_of_the_status() {
        let status = Status::not_found("management.loft.sh", "projects", "x");
        let body = serde_json::to_string(&status).unwrap();
        let error = refusal("https://a", &reply(404, &body));
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(
            error
                .to_string()
                .contains("projects.management.loft.sh \"x\" not found")
        );
        for (code, kind) in [
            (401, Kind::Denied),
            (403, Kind::Denied),
            (409, Kind::Conflict),
            (422, Kind::Usage),
            (500, Kind::Failed),
            (503, Kind::Unreachable),
        ] {
            assert_eq!(refusal("https://a", &reply(code, "")).kind(), kind, "{code}");
        }
        assert!(
            refusal("https://a", &reply(401, ""))
                .remedy()
                .unwrap()
                .contains("hanse login")
        );
        assert_eq!(
            refusal("https://a", &reply(500, "<b>\u{1b}x")).to_string(),
            "https://a: HTTP 500: <b>x"
        );
    }

    #[test]
    fn continue_tokens_survive_the_query() {
        assert_eq!(escape("a+/=&b"), "a%2B%2F%3D%26b");
    }
}
