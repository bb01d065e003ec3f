//! Watch: one JSON object per line, in the order of revisions, until the time is up, the caller's rights end or the
//! server drains.

use super::backend::{Backend, expired, failed};
use super::list::{Scope, collect, may_get};
use super::options::{ListOptions, Version};
use super::selector::Selector;
use super::table::Shaper;
use super::{Call, EndOf};
use crate::authz::{RoleCache, membership};
use crate::body::{Body, Response};
use crate::kinds::Caller;
use crate::rights::Ending;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use hanse_api::access::{Action, Membership, Principal, Roles, Target, decide};
use hanse_api::kinds::PROJECTS;
use hanse_api::resources::Project;
use hanse_api::status::Status;
use hanse_runtime::BoxError;
use hanse_state::objects::{ObjectError, ObjectEvent, ObjectWatch, Stored};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// Shortest life of a watch whose client named none; a random part of the same length is added.
const DEFAULT_LIFE: Duration = Duration::from_secs(1800);
/// Longest life that a client may ask for.
const MAX_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Time between bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Starts a watch. `end` completes when it must end early.
pub(crate) async fn watch(backend: &Backend, call: &Call<'_>, end: EndOf) -> Result<Response, Box<Status>> {
    let shaper = call.shaper()?;
    let options = ListOptions::read(call.query, true)?;
    let sight = Sight {
        backend: backend.clone(),
        shaper,
        selector: options.selector.clone(),
        principal: call.principal.clone(),
        own_only: call.own_only,
    };
    let mut watcher = Watcher {
        sight,
        extended: call.caller().extended,
        namespace: call.namespace_filter().map(str::to_owned),
        source: None,
        memberships: None,
        ready: VecDeque::new(),
        seen: 0,
        first: true,
        bookmarks: options.bookmarks,
        bookmark_at: backend.clock.sleep(BOOKMARK_EVERY),
        over: backend.clock.sleep(life(backend, &options)),
        end: end(call.own_only),
        ended: false,
    };
    watcher.start(&options).await?;
    let frames = stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(line)), watcher))
    });
    let body: Body = BodyExt::boxed_unsync(StreamBody::new(frames));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn life(backend: &Backend, options: &ListOptions) -> Duration {
    options.timeout.map_or_else(
        || DEFAULT_LIFE + DEFAULT_LIFE.mul_f64(backend.rng.unit()),
        |t| t.min(MAX_LIFE),
    )
}

struct Watcher {
    sight: Sight,
    extended: bool,
    namespace: Option<String>,
    source: Option<ObjectWatch>,
    /// Of projects, for a caller who sees a part of other objects: what he may see changes with them.
    memberships: Option<ObjectWatch>,
    /// Lines that can be sent now.
    ready: VecDeque<Bytes>,
    /// Everything up to this revision was sent.
    seen: i64,
    first: bool,
    bookmarks: bool,
    bookmark_at: BoxFuture<'static, ()>,
    over: BoxFuture<'static, ()>,
    end: BoxFuture<'static, Ending>,
    ended: bool,
}

/// What a watch shows of what changes.
struct Sight {
    backend: Backend,
    shaper: Shaper,
    selector: Selector,
    principal: Principal,
    /// Whether only what the caller may get by himself is shown.
    own_only: bool,
}

impl Sight {
    async fn roles_by(&self, project: &Stored) -> Option<Membership> {
        let object: Project = serde_json::from_slice(&project.value).ok()?;
        Some(membership(&self.backend, &self.principal, &project.name, &object.spec).await)
    }

    /// The object, if it is among what the caller asked for and may see.
    async fn selected(&self, stored: &Stored, revision: i64) -> Option<Value> {
        let kind = self.shaper.kind;
        let parsed = Backend::parse(stored).and_then(|value| self.backend.present(kind, at_revision(value, revision)));
        let value = match parsed {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(%error, "a watched object cannot be read and is left out");
                return None;
            }
        };
        if !self.selector.matches(&value) {
            return None;
        }
        if self.own_only {
            // By the object as it was: a change of its owner is an end for the one and a beginning for the other.
            let mut roles = RoleCache::new(&self.backend, &self.principal);
            let seen = match self.shaper.kind.stored_as() == &PROJECTS {
                true => self.is_member(stored).await,
                false => may_get(self.shaper.kind, &self.principal, &mut roles, &value).await,
            };
            if !seen {
                return None;
            }
        }
        Some(value)
    }

    /// For projects themselves: by the members that are written in this state of the project.
    async fn is_member(&self, project: &Stored) -> bool {
        let roles = Roles {
            management: RoleCache::new(&self.backend, &self.principal).management().await,
            project: self.roles_by(project).await.unwrap_or_default(),
            ..Roles::default()
        };
        let target = Target::Resource {
            group: PROJECTS.group,
            resource: PROJECTS.plural,
            subresource: None,
            namespace: None,
            name: Some(&project.name),
        };
        decide(&self.principal, &Action { verb: "get" }, &target, &roles).allowed
    }
}

enum Turn {
    Source(Option<Result<ObjectEvent, ObjectError>>),
    Membership(Option<Result<ObjectEvent, ObjectError>>),
    Bookmark,
    Ended(Ending),
}

impl Watcher {
    /// Sends the state first where that is asked for, and finds the revision to watch from.
    async fn start(&mut self, options: &ListOptions) -> Result<(), Box<Status>> {
        let initial = match (options.initial_events, options.version) {
            (Some(wanted), _) => wanted,
            (None, Version::Latest | Version::Any) => true,
            (None, Version::AtLeast(_) | Version::Exactly(_)) => false,
        };
        if let Version::AtLeast(revision) | Version::Exactly(revision) = options.version {
            self.sight.backend.caught_up(revision).await?;
            self.seen = revision;
        }
        if !initial && self.seen == 0 {
            self.seen = self.sight.backend.objects.store().revision();
        }
        // Roles are read at this state or a later one: a change of them after it is noticed.
        let judged = if initial {
            self.sight.backend.objects.store().revision()
        } else {
            self.seen
        };
        if initial {
            self.initial(options).await?;
        }
        if self.sight.own_only && self.sight.shaper.kind.stored_as() != &PROJECTS {
            let projects = self.sight.backend.objects.watch(&PROJECTS, None, judged.max(1)).await;
            self.memberships = Some(projects.map_err(|e| failed(&e))?);
        }
        self.connect().await.map_err(|e| failed(&e))
    }

    async fn initial(&mut self, options: &ListOptions) -> Result<(), Box<Status>> {
        let options = ListOptions {
            limit: 0,
            resume: None,
            ..options.clone()
        };
        let caller = Caller {
            principal: &self.sight.principal,
            extended: self.extended,
        };
        let listed = collect(
            &self.sight.backend,
            self.sight.shaper.kind,
            Scope {
                namespace: self.namespace.as_deref(),
                own_only: self.sight.own_only,
            },
            &options,
            caller,
        )
        .await?;
        for item in listed.items {
            self.push("ADDED", item);
        }
        self.seen = listed.meta.revision;
        if options.initial_events == Some(true) {
            self.line("BOOKMARK", &self.sight.shaper.bookmark(self.seen, true));
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), ObjectError> {
        let kind = self.sight.shaper.kind.stored_as();
        // Revision 0 would mean "from now on" and lose what happens in between; every store begins above it.
        let after = self.seen.max(1);
        self.source = Some(
            self.sight
                .backend
                .objects
                .watch(kind, self.namespace.as_deref(), after)
                .await?,
        );
        Ok(())
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            match self.turn().await {
                Turn::Source(Some(Ok(event))) => self.take(event).await,
                Turn::Source(Some(Err(error))) => self.fail(&failed(&error)),
                Turn::Source(None) => self.finish(),
                Turn::Bookmark => {
                    self.bookmark_at = self.sight.backend.clock.sleep(BOOKMARK_EVERY);
                    self.bookmark();
                }
                Turn::Membership(event) => self.membership(event).await,
                Turn::Ended(Ending::Over) => self.finish(),
                // Whoever went on from the last revision would miss what he may see since, so he is sent to list anew.
                Turn::Ended(Ending::Changed) => self.fail(&expired()),
            }
        }
    }

    async fn turn(&mut self) -> Turn {
        let Some(source) = &mut self.source else {
            return Turn::Ended(Ending::Over);
        };
        let memberships = &mut self.memberships;
        let changes = async {
            match memberships {
                Some(changes) => changes.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut self.over => Turn::Ended(Ending::Over),
            ending = &mut self.end => Turn::Ended(ending),
            event = changes => Turn::Membership(event),
            event = source.next() => Turn::Source(event),
            () = &mut self.bookmark_at, if self.bookmarks => Turn::Bookmark,
        }
    }

    /// Ends the watch when a project gives the caller other roles than before.
    async fn membership(&mut self, event: Option<Result<ObjectEvent, ObjectError>>) {
        let same = match event {
            Some(Ok(ObjectEvent::Put { new, old: Some(old) })) => {
                self.sight.roles_by(&old).await == self.sight.roles_by(&new).await
            }
            // Where there was no project there was nothing to see, and what was in one goes by itself.
            Some(Ok(
                ObjectEvent::Put { old: None, .. } | ObjectEvent::Deleted { .. } | ObjectEvent::Progress { .. },
            )) => true,
            Some(Ok(ObjectEvent::Expired { .. }) | Err(_)) | None => false,
        };
        if !same {
            self.fail(&expired());
        }
    }

    async fn take(&mut self, event: ObjectEvent) {
        match event {
            ObjectEvent::Put { new, old } => {
                self.seen = self.seen.max(new.revision);
                let was = match old {
                    Some(old) => self.sight.selected(&old, old.revision).await,
                    None => None,
                };
                let revision = new.revision;
                match (self.sight.selected(&new, revision).await, was) {
                    (Some(now), None) => self.show("ADDED", now).await,
                    (Some(now), Some(_)) => self.show("MODIFIED", now).await,
                    // It left the selection: shown as it was, at the revision at which it left.
                    (None, Some(was)) => self.show("DELETED", at_revision(was, revision)).await,
                    (None, None) => {}
                }
            }
            ObjectEvent::Deleted { old, revision } => {
                self.seen = self.seen.max(revision);
                if let Some(was) = self.sight.selected(&old, revision).await {
                    self.show("DELETED", was).await;
                }
            }
            ObjectEvent::Progress { revision } => self.seen = self.seen.max(revision),
            // Cut for being slow: the next revision can still be read.
            ObjectEvent::Expired { compacted: 0 } => {
                if let Err(error) = self.connect().await {
                    self.fail(&failed(&error));
                }
            }
            ObjectEvent::Expired { .. } => self.fail(&expired()),
        }
    }

    async fn show(&mut self, kind: &str, value: Value) {
        let caller = Caller {
            principal: &self.sight.principal,
            extended: self.extended,
        };
        let mut items = [value];
        self.sight
            .shaper
            .kind
            .decorate(&self.sight.backend, caller, &mut items)
            .await;
        let [value] = items;
        self.push(kind, value);
    }

    fn push(&mut self, kind: &str, value: Value) {
        let object = self
            .sight
            .shaper
            .event(value, self.first, self.sight.backend.clock.wall());
        self.first = false;
        self.line(kind, &object);
    }

    fn line(&mut self, kind: &str, object: &Value) {
        let mut text = json!({ "type": kind, "object": object }).to_string();
        text.push('\n');
        self.ready.push_back(text.into());
    }

    fn bookmark(&mut self) {
        if self.bookmarks && self.seen > 0 {
            self.line("BOOKMARK", &self.sight.shaper.bookmark(self.seen, false));
        }
    }

    fn fail(&mut self, status: &Status) {
        let value = serde_json::to_value(status).unwrap_or(Value::Null);
        self.line("ERROR", &value);
        self.ended = true;
    }

    fn finish(&mut self) {
        self.bookmark();
        self.ended = true;
    }
}

fn at_revision(mut value: Value, revision: i64) -> Value {
    super::object::meta_mut(&mut value).insert("resourceVersion".into(), revision.to_string().into());
    value
}
