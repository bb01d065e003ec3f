//! Get and list.

use super::backend::{Backend, failed};
use super::options::{ListOptions, Token, Version};
use super::table::ListMeta;
use super::{Call, no_such, object};
use crate::answer;
use crate::authz::RoleCache;
use crate::body::Response;
use crate::kinds::{Caller, Kind};
use hanse_api::access::{Action, Principal, Target, decide};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{Page, Stored};
use http::StatusCode;
use serde_json::Value;

/// Objects read from the store at once when a selector thins them out.
const SCAN_PAGE: i64 = 500;
/// Most objects of a list without `limit`.
const MAX_UNPAGED: usize = 50_000;

/// A list in the making.
pub(crate) struct Listed {
    pub(crate) items: Vec<Value>,
    pub(crate) meta: ListMeta,
}

/// `GET` of one object.
pub(crate) async fn get(backend: &Backend, call: &Call<'_>) -> Result<Response, Box<Status>> {
    let value = read(backend, call).await?.1;
    let mut items = [value];
    call.kind.decorate(backend, call.caller(), &mut items).await;
    let [value] = items;
    Ok(answer::json(
        StatusCode::OK,
        &call.shaper()?.one(value, backend.clock.wall()),
    ))
}

/// The named object as stored and as shown (without computed fields); 404 when it is not there.
pub(crate) async fn read(backend: &Backend, call: &Call<'_>) -> Result<(Stored, Value), Box<Status>> {
    let key = call
        .kind
        .key(call.namespace(), call.name())
        .ok_or_else(|| no_such(call.kind, call.name()))?;
    // Revision 0 means that this server's own copy will do.
    let stored = match call.query.text("resourceVersion") {
        Some("0") => backend.objects.get_local(&key).await,
        _ => backend.objects.get(&key).await,
    };
    let stored = stored
        .map_err(|e| failed(&e))?
        .ok_or_else(|| no_such(call.kind, call.name()))?;
    let value = backend.present(call.kind, Backend::parse(&stored)?)?;
    Ok((stored, value))
}

/// `GET` of a collection.
pub(crate) async fn list(backend: &Backend, call: &Call<'_>) -> Result<Response, Box<Status>> {
    let shaper = call.shaper()?;
    let options = ListOptions::read(call.query, false)?;
    let scope = Scope {
        namespace: call.namespace_filter(),
        own_only: call.own_only,
    };
    let listed = collect(backend, call.kind, scope, &options, call.caller()).await?;
    Ok(answer::json(
        StatusCode::OK,
        &shaper.list(listed.items, &listed.meta, backend.clock.wall()),
    ))
}

/// Which part of a collection is read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scope<'a> {
    /// One namespace, or all.
    pub(crate) namespace: Option<&'a str>,
    /// Whether what the caller may not get is left out.
    pub(crate) own_only: bool,
}

/// Whether the caller may get one object: the same decision as for a request for it.
pub(crate) async fn may_get(kind: &dyn Kind, principal: &Principal, roles: &mut RoleCache<'_>, object: &Value) -> bool {
    let (namespace, name) = (object::meta_text(object, "namespace"), object::name(object));
    let Some(project) = kind.project(namespace, name) else {
        return false;
    };
    let names = kind.names();
    let target = Target::Resource {
        group: names.group,
        resource: names.plural,
        subresource: None,
        namespace: Some(namespace).filter(|n| !n.is_empty()),
        name: Some(name),
    };
    let spec = Some(&object["spec"]).filter(|_| names.namespaced);
    decide(
        principal,
        &Action { verb: "get" },
        &target,
        &roles.of(Some(project), spec).await,
    )
    .allowed
}

/// Reads a collection by the rules of `resourceVersion`, `limit` and `continue`.
pub(crate) async fn collect(
    backend: &Backend,
    kind: &'static dyn Kind,
    scope: Scope<'_>,
    options: &ListOptions,
    caller: Caller<'_>,
) -> Result<Listed, Box<Status>> {
    let mut page = first_page(backend, options).await?;
    let limit = usize::try_from(options.limit).unwrap_or(usize::MAX);
    let all = options.selector.is_everything() && !scope.own_only;
    let mut roles = RoleCache::new(backend, caller.principal);
    page.limit = if options.limit > 0 && all {
        options.limit
    } else {
        SCAN_PAGE
    };
    let mut items = Vec::new();
    let mut meta = ListMeta::default();
    'pages: loop {
        let list = backend
            .objects
            .list(kind.stored_as(), scope.namespace, page.clone())
            .await
            .map_err(|e| gone(options, failed(&e)))?;
        meta.revision = list.revision;
        page.revision = list.revision;
        for (at, stored) in list.items.iter().enumerate() {
            let value = backend.present(kind, Backend::parse(stored)?)?;
            if !options.selector.matches(&value) {
                continue;
            }
            if scope.own_only && !may_get(kind, caller.principal, &mut roles, &value).await {
                continue;
            }
            items.push(value);
            let last = !list.more && at + 1 == list.items.len();
            if limit > 0 && items.len() >= limit && !last {
                meta.resume = Some(Token::new(list.revision, &stored.namespace, &stored.name).encode());
                let unseen = i64::try_from(list.items.len() - at - 1).unwrap_or(0);
                meta.remaining = all.then_some(list.remaining + unseen);
                break 'pages;
            }
            if items.len() > MAX_UNPAGED {
                let message = format!("more than {MAX_UNPAGED} objects; ask for pages with limit and continue");
                return Err(Box::new(Status::new(Reason::RequestEntityTooLarge, message)));
            }
        }
        let Some(last) = list.items.last().filter(|_| list.more) else {
            break;
        };
        page.after = Some((last.namespace.clone(), last.name.clone()));
    }
    kind.decorate(backend, caller, &mut items).await;
    Ok(Listed { items, meta })
}

async fn first_page(backend: &Backend, options: &ListOptions) -> Result<Page, Box<Status>> {
    let mut page = Page::default();
    if let Some(token) = &options.resume {
        // Whichever server gave out the token: this one may lag behind it.
        backend.caught_up(token.revision()).await?;
        page.after = Some(token.after());
        page.revision = token.revision();
        page.local = true;
        return Ok(page);
    }
    match options.version {
        Version::Latest => {}
        Version::Any => page.local = true,
        Version::AtLeast(revision) => {
            backend.caught_up(revision).await?;
            page.local = true;
        }
        Version::Exactly(revision) => {
            backend.caught_up(revision).await?;
            page.revision = revision;
            page.local = true;
        }
    }
    Ok(page)
}

/// An expired token needs words of its own.
fn gone(options: &ListOptions, mut status: Box<Status>) -> Box<Status> {
    if status.reason == Reason::Expired && options.resume.is_some() {
        "The provided continue parameter is too old to display a consistent list result. You must start a new list without the \
         continue parameter."
            .clone_into(&mut status.message);
    }
    status
}
