//! Reads beside the applying of commands: at the published revision, without waiting for anybody.

use crate::error::StoreError;
use crate::machine::hub::Subscription;
use crate::machine::space::Space;
use crate::machine::txn::Path;
use crate::machine::view::{View, header};
use crate::machine::{Machine, Shared, check};
use crate::pb;
use crate::store::{Access, WatchRequest};
use crate::watch::Watch;
use bytes::Bytes;
use std::sync::Arc;

/// How often a read starts over because what it read was compacted meanwhile.
const TRIES: usize = 8;
/// From so many values on, reading them may keep a runtime's thread busy for too long.
const INLINE_VALUES: usize = 64;

impl Machine {
    /// The space that a caller may use.
    pub(crate) fn space_of(&self, access: &Access) -> Result<Arc<Space>, StoreError> {
        access.space.check()?;
        let asked = access.space.group();
        if asked != self.shared.group {
            return Err(StoreError::WrongGroup {
                asked,
                here: self.shared.group,
            });
        }
        let space = self.shared.space(&access.space);
        space.check_epoch(access.epoch)?;
        Ok(space)
    }

    /// Reads keys from what is applied here.
    pub async fn range(&self, access: &Access, req: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
        check::check_range(&req)?;
        let space = self.space_of(access)?;
        match range_once(&self.shared, &space, &req, INLINE_VALUES)? {
            Tried::Done(answer) => Ok(answer),
            Tried::Large | Tried::Again => {
                let shared = self.shared.clone();
                let work = move || range_blocking(&shared, &space, &req);
                tokio::task::spawn_blocking(work)
                    .await
                    .unwrap_or(Err(StoreError::Stopped))
            }
        }
    }

    /// Does a transaction that only reads (see [`check::is_read_only`]).
    pub fn read_txn(&self, access: &Access, req: &pb::TxnRequest) -> Result<pb::TxnResponse, StoreError> {
        check::check_txn(req)?;
        let space = self.space_of(access)?;
        let _gate = self.shared.gate.read();
        let mark = space.opened()?;
        for _ in 0..TRIES {
            let view = view(&self.shared, &space);
            let path = Path::choose(&view, req)?;
            path.check(&view, req)?;
            if let Some(answer) = path.read(&view, req)?
                && space.floor() <= view.at
            {
                space.still_open(mark)?;
                return Ok(pb::TxnResponse {
                    header: header(view.revision),
                    ..answer
                });
            }
        }
        space.still_open(mark)?;
        Err(StoreError::Compacted { floor: space.floor() })
    }

    /// Watches keys.
    pub fn watch(&self, access: &Access, req: WatchRequest) -> Result<Watch, StoreError> {
        if req.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        let space = self.space_of(access)?;
        space.opened()?;
        // Copies, so that a watch does not keep the buffer that its request came in.
        let key = Bytes::copy_from_slice(&req.key);
        let range_end = Bytes::copy_from_slice(&req.range_end);
        let req = WatchRequest { key, range_end, ..req };
        let (created, subscription) = Subscription::new(self.shared.clone(), space, req);
        Ok(Watch::new(created, Box::new(subscription)))
    }

    /// Number of the space's watches.
    pub fn watchers(&self, access: &Access) -> Result<usize, StoreError> {
        Ok(self.space_of(access)?.hub.len())
    }

    /// Ids of the space's leases.
    pub fn leases(&self, access: &Access) -> Result<Vec<i64>, StoreError> {
        let space = self.space_of(access)?;
        space.opened()?;
        Ok(space.leases.lock().keys().copied().collect())
    }

    /// Time that a lease has left at `now_millis`.
    pub fn lease_time_to_live(
        &self,
        access: &Access,
        id: i64,
        keys: bool,
        now_millis: i64,
    ) -> Result<pb::LeaseTimeToLiveResponse, StoreError> {
        let space = self.space_of(access)?;
        space.opened()?;
        let leases = space.leases.lock();
        let header = header(self.revision());
        let Some(lease) = leases.get(&id) else {
            return Ok(pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: -1,
                ..Default::default()
            });
        };
        let left = lease.record.deadline.saturating_sub(now_millis).max(0) / 1000;
        let attached = if keys {
            lease.keys.iter().cloned().collect()
        } else {
            Vec::new()
        };
        let ttl = left.min(lease.record.ttl);
        Ok(pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl,
            granted_ttl: lease.record.ttl,
            keys: attached,
        })
    }
}

enum Tried {
    Done(pb::RangeResponse),
    /// More values than were allowed.
    Large,
    /// What was found was compacted before it was read.
    Again,
}

/// What a reader sees now.
pub(crate) fn view<'a>(shared: &'a Shared, space: &'a Space) -> View<'a> {
    // In this order: a floor is published after the revisions below it.
    let floor = space.floor();
    let revision = shared.revision();
    View {
        engine: shared.engine.as_ref(),
        space,
        pending: None,
        at: revision,
        revision,
        floor,
    }
}

fn range_once(shared: &Shared, space: &Space, req: &pb::RangeRequest, most: usize) -> Result<Tried, StoreError> {
    shared.meters.ranges.add(1);
    let _gate = shared.gate.read();
    let mark = space.opened()?;
    let view = view(shared, space);
    let at = view.revision_of(req)?;
    let found = view.find(req, at);
    if found.values(req) > most {
        return Ok(Tried::Large);
    }
    let answer = view.answer(req, found)?;
    // Looked at last: versions go only after the floor has moved, or the space was closed.
    space.still_open(mark)?;
    match answer {
        Some(answer) if space.floor() <= at => Ok(Tried::Done(answer)),
        Some(_) | None => Ok(Tried::Again),
    }
}

fn range_blocking(shared: &Shared, space: &Space, req: &pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
    for _ in 0..TRIES {
        if let Tried::Done(answer) = range_once(shared, space, req, usize::MAX)? {
            return Ok(answer);
        }
    }
    Err(StoreError::Compacted { floor: space.floor() })
}
