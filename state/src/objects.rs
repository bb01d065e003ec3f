//! Typed access of gateway and controllers to the registry: objects by kind, namespace and name, on top of any
//! [`Store`] of the council.
//!
//! An object's `resourceVersion` is the revision of its last change; it is not part of the stored value.

use crate::error::StoreError;
use crate::keys;
use crate::pb::{self, compare, request_op, response_op};
use crate::store::{Access, Store, WatchItem, WatchRequest};
use crate::watch::Watch;
use bytes::Bytes;
use hanse_api::kinds::KindName;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: KindName,
    /// Its namespace, empty for a cluster-scoped kind.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// A namespaced object, or with an empty namespace a cluster-scoped one.
    pub fn new(kind: &KindName, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind: *kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn encode(&self) -> Result<Bytes, ObjectError> {
        let bad = self.name.is_empty()
            || self.name.contains('/')
            || self.namespace.contains('/')
            || self.kind.namespaced == self.namespace.is_empty();
        if bad {
            return Err(ObjectError::InvalidKey(self.to_string()));
        }
        Ok(keys::object_key(&self.kind, &self.namespace, &self.name).into())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.plural, self.namespace, self.name)
    }
}

/// An object as the store holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// Namespace, empty for a cluster-scoped kind.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The object, as JSON.
    pub value: Bytes,
    /// Revision of its last change: its `resourceVersion`.
    pub revision: i64,
    /// Revision of its creation.
    pub created: i64,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may hold sealed keys: they do not belong in a log.
        write!(
            f,
            "Stored({}/{} at {}, {} bytes)",
            self.namespace,
            self.name,
            self.revision,
            self.value.len()
        )
    }
}

/// One part of a [`Objects::commit`].
#[derive(Clone, Debug)]
pub enum Op {
    /// Creates an object that does not exist.
    Create {
        /// Its name.
        key: ObjectKey,
        /// Its JSON.
        value: Bytes,
    },
    /// Replaces an object whose revision is `expected`.
    Update {
        /// Its name.
        key: ObjectKey,
        /// Its new JSON.
        value: Bytes,
        /// Revision that it must have.
        expected: i64,
    },
    /// Deletes an object whose revision is `expected`.
    Delete {
        /// Its name.
        key: ObjectKey,
        /// Revision that it must have.
        expected: i64,
    },
    /// Changes nothing, but fails the whole commit unless the object has this revision.
    Require {
        /// Its name.
        key: ObjectKey,
        /// Revision that it must have; 0: it must not exist.
        revision: i64,
    },
}

impl Op {
    /// The object that it is about.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Create { key, .. }
            | Self::Update { key, .. }
            | Self::Delete { key, .. }
            | Self::Require { key, .. } => key,
        }
    }

    fn expected(&self) -> i64 {
        match self {
            Self::Create { .. } => 0,
            Self::Update { expected, .. } | Self::Delete { expected, .. } => *expected,
            Self::Require { revision, .. } => *revision,
        }
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many objects; 0: all.
    pub limit: i64,
    /// Namespace and name of the object after which the page starts.
    pub after: Option<(String, String)>,
    /// Revision to list at; 0: the present one.
    pub revision: i64,
    /// Whether this member's applied state will do.
    pub local: bool,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Objects by namespace and name.
    pub items: Vec<Stored>,
    /// Revision that the whole list is of: watch from here, and give it with the next page.
    pub revision: i64,
    /// Whether objects follow.
    pub more: bool,
    /// How many follow.
    pub remaining: i64,
}

impl List {
    /// What to ask for after this answer to `page`, at the same revision; none if nothing follows.
    pub fn next_page(&self, page: Page) -> Option<Page> {
        let last = self.items.last().filter(|_| self.more)?;
        Some(Page {
            after: Some((last.namespace.clone(), last.name.clone())),
            revision: self.revision,
            ..page
        })
    }
}

/// Why an access to objects failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A part of a commit does not hold, so that nothing was changed.
    #[error("precondition of part {index} does not hold, the object is {}", found_text(.found))]
    Failed {
        /// Index of the first part that does not hold.
        index: usize,
        /// The object as it is, none if it does not exist.
        found: Option<Stored>,
    },
    /// The name cannot be a key.
    #[error("{0:?} names no object: check namespace and name")]
    InvalidKey(String),
    /// An update or a deletion must say which revision it expects.
    #[error("update or deletion of {0:?} without an expected revision: read the object first")]
    NoRevision(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn found_text(found: &Option<Stored>) -> String {
    match found {
        Some(stored) => format!("at revision {}", stored.revision),
        None => "absent".to_owned(),
    }
}

impl ObjectError {
    /// Whether the same request may succeed later without the caller doing anything else.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            Self::Failed { .. } | Self::InvalidKey(_) | Self::NoRevision(_) => false,
        }
    }
}

/// Says for the audit who makes changes. Events are canonical JSON in the shape of `audit.k8s.io/v1` Event.
pub trait Author: Send + Sync {
    /// An event for each part of a commit that the audit shall know of.
    fn events(&self, ops: &[Op]) -> Vec<String>;

    /// An event that says what is about to happen, for what is more than a commit.
    fn begun(&self) -> Option<String> {
        None
    }
}

/// The registry.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn Store>,
    author: Option<Arc<dyn Author>>,
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects")
            .field("revision", &self.store.revision())
            .finish()
    }
}

impl Objects {
    /// On top of the council's store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, author: None }
    }

    /// The same registry for one who makes changes: each commit carries the events that he writes, both or neither.
    #[must_use]
    pub fn by(&self, author: Arc<dyn Author>) -> Self {
        Self {
            store: Arc::clone(&self.store),
            author: Some(author),
        }
    }

    /// Writes audit events about what changed nothing, in order, at one revision.
    pub async fn record(&self, events: Vec<String>) -> Result<(), ObjectError> {
        self.store.txn_audited(pb::TxnRequest::default(), events).await?;
        Ok(())
    }

    /// Writes the audit event of what is about to happen and is more than a commit, before it does.
    pub async fn begin(&self) -> Result<(), ObjectError> {
        match self.author.as_ref().and_then(|author| author.begun()) {
            Some(event) => self.record(vec![event]).await,
            None => Ok(()),
        }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Reads an object, linearizable.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Stored>, ObjectError> {
        self.read(key, false).await
    }

    /// Reads an object from this member's applied state, which may lag.
    pub async fn get_local(&self, key: &ObjectKey) -> Result<Option<Stored>, ObjectError> {
        self.read(key, true).await
    }

    async fn read(&self, key: &ObjectKey, serializable: bool) -> Result<Option<Stored>, ObjectError> {
        let req = pb::RangeRequest {
            key: key.encode()?,
            serializable,
            ..Default::default()
        };
        let answer = self.store.range(&Access::registry(), req).await?;
        answer
            .kvs
            .into_iter()
            .next()
            .map(|kv| stored(&key.kind, kv))
            .transpose()
    }

    /// Lists a kind's objects, of one namespace or of all.
    pub async fn list(&self, kind: &KindName, namespace: Option<&str>, page: Page) -> Result<List, ObjectError> {
        let prefix = prefix(kind, namespace);
        let key = match &page.after {
            Some((namespace, name)) => {
                let mut key = ObjectKey::new(kind, namespace, name).encode()?.to_vec();
                key.push(0);
                key
            }
            None => prefix.clone(),
        };
        let req = pb::RangeRequest {
            key: key.into(),
            range_end: keys::prefix_end(&prefix).into(),
            limit: page.limit,
            revision: page.revision,
            serializable: page.local,
            ..Default::default()
        };
        let answer = self.store.range(&Access::registry(), req).await?;
        let now = answer.header.unwrap_or_default().revision;
        let items = answer
            .kvs
            .into_iter()
            .map(|kv| stored(kind, kv))
            .collect::<Result<Vec<_>, _>>()?;
        let remaining = answer.count - i64::try_from(items.len()).unwrap_or(i64::MAX);
        let revision = if page.revision > 0 { page.revision } else { now };
        Ok(List {
            items,
            revision,
            more: answer.more,
            remaining,
        })
    }

    /// Does all of `ops` at one revision, which is answered, or nothing. Without a change the answer is the present
    /// revision.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<i64, ObjectError> {
        let mut txn = pb::TxnRequest::default();
        for op in &ops {
            let key = op.key().encode()?;
            if matches!(op, Op::Update { .. } | Op::Delete { .. }) && op.expected() <= 0 {
                return Err(ObjectError::NoRevision(op.key().to_string()));
            }
            txn.compare.push(at_revision(key.clone(), op.expected()));
            let read = pb::RangeRequest {
                key: key.clone(),
                ..Default::default()
            };
            txn.failure.push(request(request_op::Request::RequestRange(read)));
            match op {
                Op::Create { value, .. } | Op::Update { value, .. } => {
                    let put = pb::PutRequest {
                        key,
                        value: value.clone(),
                        ..Default::default()
                    };
                    txn.success.push(request(request_op::Request::RequestPut(put)));
                }
                Op::Delete { .. } => {
                    let delete = pb::DeleteRangeRequest {
                        key,
                        ..Default::default()
                    };
                    txn.success
                        .push(request(request_op::Request::RequestDeleteRange(delete)));
                }
                Op::Require { .. } => {}
            }
        }
        let events = self.author.as_ref().map(|author| author.events(&ops));
        let answer = match events.filter(|events| !events.is_empty()) {
            Some(events) => self.store.txn_audited(txn, events).await?,
            None => self.store.txn(&Access::registry(), txn).await?,
        };
        if answer.succeeded {
            return Ok(answer.header.unwrap_or_default().revision);
        }
        Err(first_failure(&ops, answer.responses)?)
    }

    /// Watches a kind's objects, of one namespace or of all, from after revision `after`; 0: from now on.
    pub async fn watch(
        &self,
        kind: &KindName,
        namespace: Option<&str>,
        after: i64,
    ) -> Result<ObjectWatch, ObjectError> {
        let prefix = prefix(kind, namespace);
        let req = WatchRequest {
            range_end: keys::prefix_end(&prefix).into(),
            key: prefix.into(),
            start_revision: if after > 0 { after + 1 } else { 0 },
            prev_kv: true,
            progress: true,
            ..Default::default()
        };
        let watch = self.store.watch(&Access::registry(), req).await?;
        Ok(ObjectWatch {
            kind: *kind,
            watch,
            ready: VecDeque::new(),
        })
    }
}

fn prefix(kind: &KindName, namespace: Option<&str>) -> Vec<u8> {
    match namespace {
        Some(namespace) if !namespace.is_empty() => keys::namespace_prefix(kind, namespace).into_bytes(),
        _ => keys::kind_prefix(kind).into_bytes(),
    }
}

fn request(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn at_revision(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key,
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
        range_end: Bytes::new(),
    }
}

fn stored(kind: &KindName, kv: pb::KeyValue) -> Result<Stored, ObjectError> {
    let Some((namespace, name)) = keys::split_object_key(kind, &kv.key) else {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        return Err(StoreError::Corrupt(format!("registry key {key:?} names no object of {}", kind.plural)).into());
    };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    Ok(Stored {
        namespace,
        name,
        value: kv.value,
        revision: kv.mod_revision,
        created: kv.create_revision,
    })
}

fn first_failure(ops: &[Op], responses: Vec<pb::ResponseOp>) -> Result<ObjectError, ObjectError> {
    for (index, (op, response)) in ops.iter().zip(responses).enumerate() {
        let Some(response_op::Response::ResponseRange(range)) = response.response else {
            continue;
        };
        let found = range.kvs.into_iter().next();
        if found.as_ref().map_or(0, |kv| kv.mod_revision) != op.expected() {
            let found = found.map(|kv| stored(&op.key().kind, kv)).transpose()?;
            return Ok(ObjectError::Failed { index, found });
        }
    }
    Err(StoreError::Corrupt("a transaction failed although all its preconditions hold".to_owned()).into())
}

/// One change of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectEvent {
    /// Created (`old` is none) or changed.
    Put {
        /// The object now.
        new: Stored,
        /// The object before.
        old: Option<Stored>,
    },
    /// Deleted.
    Deleted {
        /// The object before.
        old: Stored,
        /// Revision of the deletion.
        revision: i64,
    },
    /// Everything up to the revision was yielded before.
    Progress {
        /// The revision.
        revision: i64,
    },
    /// The watch cannot go on and nothing follows: list anew.
    Expired {
        /// Oldest revision that can be watched from; 0 when the watch was cut for being slow, and going on after the
        /// last revision seen is possible.
        compacted: i64,
    },
}

/// A stream of changes of objects.
#[derive(Debug)]
pub struct ObjectWatch {
    kind: KindName,
    watch: Watch,
    ready: VecDeque<ObjectEvent>,
}

impl ObjectWatch {
    /// The next change; none when the store stopped or after [`ObjectEvent::Expired`]. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<Result<ObjectEvent, ObjectError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.watch.next().await? {
                WatchItem::Progress { revision } => return Some(Ok(ObjectEvent::Progress { revision })),
                WatchItem::Compacted { revision } => return Some(Ok(ObjectEvent::Expired { compacted: revision })),
                WatchItem::Lagged => return Some(Ok(ObjectEvent::Expired { compacted: 0 })),
                WatchItem::Events { events, .. } => {
                    for event in events {
                        match object_event(&self.kind, event) {
                            Ok(event) => self.ready.push_back(event),
                            Err(error) => return Some(Err(error)),
                        }
                    }
                }
            }
        }
    }

    /// The revision up to which every change was yielded; none while some are still to come. What a bookmark says.
    pub fn progress(&self) -> Option<i64> {
        if self.ready.is_empty() {
            self.watch.progress()
        } else {
            None
        }
    }
}

fn object_event(kind: &KindName, event: pb::Event) -> Result<ObjectEvent, ObjectError> {
    let old = event.prev_kv.map(|kv| stored(kind, kv)).transpose()?;
    let kv = event.kv.unwrap_or_default();
    if event.r#type == i32::from(pb::event::EventType::Put) {
        return Ok(ObjectEvent::Put {
            new: stored(kind, kv)?,
            old,
        });
    }
    let missing = || StoreError::Corrupt("a deletion without the object that was deleted".to_owned());
    Ok(ObjectEvent::Deleted {
        old: old.ok_or_else(missing)?,
        revision: kv.mod_revision,
    })
}
