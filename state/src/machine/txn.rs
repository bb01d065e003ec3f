//! What a transaction does: choose a path by its compares, check the whole path, then do it.
//!
//! The compares of all nested transactions are decided before the first change, as in etcd. After the checks nothing
//! can be refused any more, so a transaction never has to be undone.

use crate::engine::Cf;
use crate::error::StoreError;
use crate::keys;
use crate::machine::Fault;
use crate::machine::hub::{Change, Commit};
use crate::machine::index::{Index, KeyRange, Version};
use crate::machine::limits::Growth;
use crate::machine::record::{self, EventRecord};
use crate::machine::space::Space;
use crate::machine::stage::Stage;
use crate::machine::view::{View, header};
use crate::pb::{self, request_op::Request, response_op::Response};
use bytes::Bytes;
use hanse_api::audit::{HEAD, Head};
use hanse_runtime::pki::sha256_hex;
use std::sync::Arc;

/// Which branch each transaction of a tree takes.
pub(crate) struct Path {
    succeeded: bool,
    /// In the order of the nested transactions on the chosen branch.
    nested: Vec<Path>,
}

impl Path {
    pub(crate) fn choose(view: &View<'_>, req: &pb::TxnRequest) -> Result<Self, StoreError> {
        let mut succeeded = true;
        for compare in &req.compare {
            if !view.holds(compare)? {
                succeeded = false;
                break;
            }
        }
        let mut nested = Vec::new();
        for op in ops(req, succeeded) {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                nested.push(Self::choose(view, txn)?);
            }
        }
        Ok(Self { succeeded, nested })
    }

    /// Refuses what cannot be done on this path.
    pub(crate) fn check(&self, view: &View<'_>, req: &pb::TxnRequest) -> Result<(), StoreError> {
        let mut nested = self.nested.iter();
        for op in ops(req, self.succeeded) {
            match &op.request {
                Some(Request::RequestRange(range)) => {
                    // A range of its own takes a negative revision for none; in a transaction etcd takes it at its word.
                    if range.revision < 0 && range.revision < view.floor {
                        return Err(StoreError::Compacted { floor: view.floor });
                    }
                    view.revision_of(range)?;
                }
                Some(Request::RequestPut(put)) => check_put(view.space, put)?,
                Some(Request::RequestTxn(txn)) => {
                    if let Some(path) = nested.next() {
                        path.check(view, txn)?;
                    }
                }
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// What the path adds to a space at most.
    fn growth(&self, index: &Index, req: &pb::TxnRequest) -> Growth {
        let mut nested = self.nested.iter();
        let of = |op: &pb::RequestOp| match &op.request {
            Some(Request::RequestPut(put)) => Growth::of_put(index, &put.key, put.value.len(), put.ignore_value),
            Some(Request::RequestTxn(txn)) => nested
                .next()
                .map_or_else(Growth::default, |path| path.growth(index, txn)),
            Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => Growth::default(),
        };
        ops(req, self.succeeded)
            .iter()
            .map(of)
            .fold(Growth::default(), Growth::and)
    }

    /// Answers a transaction that only reads. None: a value was compacted away meanwhile.
    pub(crate) fn read(&self, view: &View<'_>, req: &pb::TxnRequest) -> Result<Option<pb::TxnResponse>, StoreError> {
        let mut nested = self.nested.iter();
        let mut responses = Vec::new();
        for op in ops(req, self.succeeded) {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    let found = view.find(range, view.revision_of(range)?);
                    view.answer(range, found)?.map(Response::ResponseRange)
                }
                Some(Request::RequestTxn(txn)) => match nested.next() {
                    Some(path) => path.read(view, txn)?.map(Response::ResponseTxn),
                    None => None,
                },
                Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => None,
            };
            if response.is_none() {
                return Ok(None);
            }
            responses.push(pb::ResponseOp { response });
        }
        // Only the outermost header has a revision, as in etcd.
        Ok(Some(pb::TxnResponse {
            header: header(0),
            succeeded: self.succeeded,
            responses,
        }))
    }
}

fn ops(req: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &req.success } else { &req.failure }
}

fn check_put(space: &Space, put: &pb::PutRequest) -> Result<(), StoreError> {
    if put.lease != 0 && !space.leases.lock().contains_key(&put.lease) {
        return Err(StoreError::LeaseNotFound);
    }
    if put.ignore_value || put.ignore_lease {
        let index = space.index.read();
        if index.latest(&put.key).is_none_or(Version::is_tombstone) {
            return Err(StoreError::KeyNotFound);
        }
    }
    Ok(())
}

/// Changes of one revision while they are made.
pub(crate) struct Changes<'a> {
    stage: &'a mut Stage,
    space: Arc<Space>,
    /// Revision before.
    base: i64,
    changes: Vec<Change>,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(stage: &'a mut Stage, space: Arc<Space>) -> Self {
        let base = stage.revision;
        Self {
            stage,
            space,
            base,
            changes: Vec::new(),
        }
    }

    /// Does a transaction, and audits it by `events` if its compares hold.
    pub(crate) fn run(mut self, req: pb::TxnRequest, events: &[String]) -> Result<pb::TxnResponse, Fault> {
        let view = self.view();
        let path = Path::choose(&view, &req).map_err(Fault::Fatal)?;
        path.check(&view, &req).map_err(Fault::Refused)?;
        let growth = || path.growth(&self.space.index.read(), &req);
        self.space.check_limits(growth).map_err(Fault::Refused)?;
        let mut answer = self.branch(req, &path)?;
        if path.succeeded && !events.is_empty() {
            self.audit(events)?;
        }
        answer.header = header(self.revision());
        self.finish();
        Ok(answer)
    }

    /// Deletes keys; the revision is taken only if one existed.
    pub(crate) fn delete_keys(mut self, keys: impl IntoIterator<Item = Bytes>) -> Result<(), Fault> {
        for key in keys {
            self.delete_key(&key, false)?;
        }
        self.finish();
        Ok(())
    }

    /// Chains events to those before and writes them, in the revision of the changes.
    fn audit(&mut self, events: &[String]) -> Result<(), Fault> {
        let mut head = match self.stage.chain.take() {
            Some(head) => head,
            None => self.chain_head()?,
        };
        for event in events {
            let link = head.chain(self.base + 1, self.stage.last_at, event, sha256_hex);
            head = link.head();
            self.write(keys::audit_event_key(&link.name()), link.object(event))?;
        }
        self.write(keys::audit_chain_key(HEAD), head.object(HEAD))?;
        self.stage.chain = Some(head);
        Ok(())
    }

    /// Where the chain ends, as it is stored.
    fn chain_head(&self) -> Result<Head, Fault> {
        let key: Bytes = keys::audit_chain_key(HEAD).into();
        let Some(version) = self.latest(&key) else {
            return Ok(Head::start(self.space.name.group().0));
        };
        let stored = self.key_value(&key, &version)?;
        let unreadable = || Fault::Fatal(StoreError::Corrupt("the audit's chain has no readable end".to_owned()));
        Head::of_object(&stored.value).ok_or_else(unreadable)
    }

    fn write(&mut self, key: String, value: String) -> Result<(), Fault> {
        let put = pb::PutRequest {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        self.put(put).map(|_| ())
    }

    fn view(&self) -> View<'_> {
        View {
            engine: self.stage.engine.as_ref(),
            space: &self.space,
            pending: Some(&self.stage.pending),
            at: i64::MAX,
            revision: self.revision(),
            floor: self.space.staged_floor(),
        }
    }

    /// The revision as answers show it: the new one once something changed.
    fn revision(&self) -> i64 {
        if self.changes.is_empty() {
            self.base
        } else {
            self.base + 1
        }
    }

    fn branch(&mut self, req: pb::TxnRequest, path: &Path) -> Result<pb::TxnResponse, Fault> {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        let chosen = if path.succeeded { req.success } else { req.failure };
        for op in chosen {
            let response = match op.request {
                Some(Request::RequestRange(range)) => Some(Response::ResponseRange(self.range(&range)?)),
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.put(put)?)),
                Some(Request::RequestDeleteRange(delete)) => Some(Response::ResponseDeleteRange(self.delete(&delete)?)),
                Some(Request::RequestTxn(txn)) => match nested.next() {
                    Some(path) => Some(Response::ResponseTxn(self.branch(txn, path)?)),
                    None => None,
                },
                None => None,
            };
            responses.push(pb::ResponseOp { response });
        }
        // Only the outermost header has a revision, as in etcd.
        Ok(pb::TxnResponse {
            header: header(0),
            succeeded: path.succeeded,
            responses,
        })
    }

    fn range(&self, req: &pb::RangeRequest) -> Result<pb::RangeResponse, Fault> {
        let view = self.view();
        let at = view.revision_of(req).map_err(Fault::Fatal)?;
        let found = view.find(req, at);
        let answer = view.answer(req, found).map_err(Fault::Fatal)?;
        answer.ok_or_else(|| Fault::Fatal(StoreError::Corrupt("a value of a present key is missing".to_owned())))
    }

    fn latest(&self, key: &[u8]) -> Option<Version> {
        self.space
            .index
            .read()
            .latest(key)
            .filter(|version| !version.is_tombstone())
            .copied()
    }

    fn key_value(&self, key: &Bytes, version: &Version) -> Result<pb::KeyValue, Fault> {
        let value = self.view().value(key, version).map_err(Fault::Fatal)?;
        let missing = || Fault::Fatal(StoreError::Corrupt("a value of a present key is missing".to_owned()));
        Ok(record::key_value(key.clone(), version, value.ok_or_else(missing)?))
    }

    fn put(&mut self, req: pb::PutRequest) -> Result<pb::PutResponse, Fault> {
        let pb::PutRequest {
            key,
            mut value,
            mut lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        } = req;
        let previous = self.latest(&key);
        let mut before = None;
        if let Some(previous) = previous.filter(|_| prev_kv || ignore_value) {
            before = Some(self.key_value(&key, &previous)?);
        }
        if let Some(before) = before.as_ref().filter(|_| ignore_value) {
            value = before.value.clone();
        }
        if let Some(previous) = previous.filter(|_| ignore_lease) {
            lease = previous.lease;
        }
        let modified = self.base + 1;
        let version = Version {
            modified,
            created: previous.map_or(modified, |previous| previous.created),
            version: previous.map_or(1, |previous| previous.version + 1),
            lease,
            size: u32::try_from(value.len()).unwrap_or(u32::MAX),
        };
        self.stage.pending.insert(modified, key.clone(), value.clone());
        self.record(key, value, version, previous, before.clone());
        Ok(pb::PutResponse {
            header: header(self.revision()),
            prev_kv: before.filter(|_| prev_kv),
        })
    }

    fn delete(&mut self, req: &pb::DeleteRangeRequest) -> Result<pb::DeleteRangeResponse, Fault> {
        let range = KeyRange::new(&req.key, &req.range_end);
        let keys: Vec<Bytes> = {
            let index = self.space.index.read();
            index.range(&range, i64::MAX).map(|(key, _)| key.clone()).collect()
        };
        let deleted = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        let mut prev_kvs = Vec::new();
        for key in &keys {
            prev_kvs.extend(self.delete_key(key, req.prev_kv)?);
        }
        Ok(pb::DeleteRangeResponse {
            header: header(self.revision()),
            deleted,
            prev_kvs,
        })
    }

    fn delete_key(&mut self, key: &Bytes, prev_kv: bool) -> Result<Option<pb::KeyValue>, Fault> {
        let Some(previous) = self.latest(key) else {
            return Ok(None);
        };
        let before = if prev_kv {
            Some(self.key_value(key, &previous)?)
        } else {
            None
        };
        let version = Version::tombstone(self.base + 1);
        self.record(key.clone(), Bytes::new(), version, Some(previous), before.clone());
        Ok(before)
    }

    /// Writes a change to the batch, the index, the leases and the list of events.
    fn record(
        &mut self,
        key: Bytes,
        value: Bytes,
        version: Version,
        previous: Option<Version>,
        before: Option<pb::KeyValue>,
    ) {
        let deleted = version.is_tombstone();
        let sub = u32::try_from(self.changes.len()).unwrap_or(u32::MAX);
        let version_key = self.space.version_key(&key, version.modified);
        let event_key = keys::event_key(&self.space.prefix, version.modified, sub);
        let previous_revision = previous.map_or(0, |previous| previous.modified);
        let event = EventRecord {
            version,
            previous: previous_revision,
            key: key.clone(),
        };
        self.stage
            .batch
            .put(Cf::Key, version_key, record::encode_version(&version, &value));
        self.stage.batch.put(Cf::Rev, event_key, event.encode());
        self.space.attach(&key, previous.as_ref(), &version);
        self.space.change_index(|index| index.push(&key, version));
        let kv = if deleted {
            pb::KeyValue {
                key,
                mod_revision: version.modified,
                ..Default::default()
            }
        } else {
            record::key_value(key, &version, value)
        };
        self.changes
            .push(Change::new(kv, deleted, previous).with_previous(before));
    }

    fn finish(self) {
        if !self.changes.is_empty() {
            let revision = self.base + 1;
            self.stage.revision = revision;
            self.stage.commits.push((
                self.space,
                Arc::new(Commit {
                    revision,
                    changes: self.changes,
                }),
            ));
        }
    }
}
