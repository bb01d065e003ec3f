//! Watch: one JSON object per line, in the order of revisions, until the time is up, the caller's rights end or the
//! server drains.

use super::Call;
use super::backend::{Backend, expired, failed};
use super::list::{Scope, collect};
use super::options::{ListOptions, Version};
use super::selector::Selector;
use super::table::Shaper;
use crate::body::{Body, Response};
use crate::kinds::Caller;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use hanse_api::access::Principal;
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
pub(crate) async fn watch(
    backend: &Backend,
    call: &Call<'_>,
    end: BoxFuture<'static, ()>,
) -> Result<Response, Box<Status>> {
    let shaper = call.shaper()?;
    let options = ListOptions::read(call.query, true)?;
    let mut watcher = Watcher {
        backend: backend.clone(),
        shaper,
        selector: options.selector.clone(),
        principal: call.principal.clone(),
        extended: call.caller().extended,
        namespace: call.namespace_filter().map(str::to_owned),
        source: None,
        ready: VecDeque::new(),
        seen: 0,
        first: true,
        bookmarks: options.bookmarks,
        bookmark_at: backend.clock.sleep(BOOKMARK_EVERY),
        over: backend.clock.sleep(life(backend, &options)),
        end,
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
    backend: Backend,
    shaper: Shaper,
    selector: Selector,
    principal: Principal,
    extended: bool,
    namespace: Option<String>,
    source: Option<ObjectWatch>,
    /// Lines that can be sent now.
    ready: VecDeque<Bytes>,
    /// Everything up to this revision was sent.
    seen: i64,
    first: bool,
    bookmarks: bool,
    bookmark_at: BoxFuture<'static, ()>,
    over: BoxFuture<'static, ()>,
    end: BoxFuture<'static, ()>,
    ended: bool,
}

enum Turn {
    Source(Option<Result<ObjectEvent, ObjectError>>),
    Bookmark,
    Over,
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
            self.backend.caught_up(revision).await?;
            self.seen = revision;
        }
        if initial {
            self.initial(options).await?;
        } else if self.seen == 0 {
            self.seen = self.backend.objects.store().revision();
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
            principal: &self.principal,
            extended: self.extended,
        };
        let listed = collect(
            &self.backend,
            self.shaper.kind,
            Scope {
                namespace: self.namespace.as_deref(),
                own_only: false,
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
            self.line("BOOKMARK", &self.shaper.bookmark(self.seen, true));
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), ObjectError> {
        let kind = self.shaper.kind.stored_as();
        // Revision 0 would mean "from now on" and lose what happens in between; every store begins above it.
        let after = self.seen.max(1);
        self.source = Some(
            self.backend
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
                    self.bookmark_at = self.backend.clock.sleep(BOOKMARK_EVERY);
                    self.bookmark();
                }
                Turn::Over => self.finish(),
            }
        }
    }

    async fn turn(&mut self) -> Turn {
        let Some(source) = &mut self.source else {
            return Turn::Over;
        };
        tokio::select! {
            () = &mut self.over => Turn::Over,
            () = &mut self.end => Turn::Over,
            event = source.next() => Turn::Source(event),
            () = &mut self.bookmark_at, if self.bookmarks => Turn::Bookmark,
        }
    }

    async fn take(&mut self, event: ObjectEvent) {
        match event {
            ObjectEvent::Put { new, old } => {
                self.seen = self.seen.max(new.revision);
                let was = old.and_then(|old| self.selected(&old, old.revision));
                let revision = new.revision;
                match (self.selected(&new, revision), was) {
                    (Some(now), None) => self.show("ADDED", now).await,
                    (Some(now), Some(_)) => self.show("MODIFIED", now).await,
                    // It left the selection: shown as it was, at the revision at which it left.
                    (None, Some(was)) => self.show("DELETED", at_revision(was, revision)).await,
                    (None, None) => {}
                }
            }
            ObjectEvent::Deleted { old, revision } => {
                self.seen = self.seen.max(revision);
                if let Some(was) = self.selected(&old, revision) {
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

    fn selected(&self, stored: &Stored, revision: i64) -> Option<Value> {
        let value = match Backend::parse(stored) {
            Ok(value) => self.shaper.kind.present(at_revision(value, revision)),
            Err(error) => {
                tracing::error!(%error, "a watched object cannot be read and is left out");
                return None;
            }
        };
        self.selector.matches(&value).then_some(value)
    }

    async fn show(&mut self, kind: &str, value: Value) {
        let caller = Caller {
            principal: &self.principal,
            extended: self.extended,
        };
        let mut items = [value];
        self.shaper.kind.decorate(&self.backend, caller, &mut items).await;
        let [value] = items;
        self.push(kind, value);
    }

    fn push(&mut self, kind: &str, value: Value) {
        let object = self.shaper.event(value, self.first, self.backend.clock.wall());
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
            self.line("BOOKMARK", &self.shaper.bookmark(self.seen, false));
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
