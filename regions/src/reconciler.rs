//! What a controller is: which changes concern it, what it plans, and how one step of a plan is done.
//!
//! A controller contains no loop, timer, retry or spawn; those are the driver's ([`crate::driver`]). `plan` is a pure
//! function of the view, so it can be tested as a table. `step` does one idempotent effect; it names the revisions that
//! the plan rests on, so a plan that was overtaken has no effect and is made anew.

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_api::meta::Object;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_runtime::seal::Sealer;
use hanse_state::Store;
use hanse_state::objects::{ObjectError, ObjectKey, Objects, Op};
use serde::Serialize;

use crate::error::StepError;
use crate::scope::Scope;
use crate::view::{Change, View};

/// How long one commit may take before it counts as failed.
pub const COMMIT_LIMIT: Duration = Duration::from_secs(5);

/// One controller.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// Address of one piece of work. Never data: that is in the view.
    type Key: Ord + Clone + Display + Debug + Send + Sync + 'static;
    /// One effect.
    type Step: Debug + Send + Sync + 'static;

    /// Name in logs and status.
    const NAME: &'static str;
    /// Keys worked on at the same time.
    const CONCURRENCY: usize = 8;

    /// Keys that `change` may concern. `view` has the change already.
    fn wakes_on(&self, view: &View, change: &Change) -> Vec<Self::Key>;
    /// Every key there is, for a full resync.
    fn keys(&self, view: &View) -> Vec<Self::Key>;
    /// What to do for `key`; no steps when all is as it should be.
    fn plan(&self, view: &View, key: &Self::Key, now: Timestamp) -> Plan<Self::Step>;
    /// Does one step.
    async fn step(&self, ctx: &StepCtx, step: &Self::Step) -> Result<Progress, StepError>;
    /// What to do when `key` failed many times in a row: usually a condition that says so.
    fn gave_up(&self, view: &View, key: &Self::Key, now: Timestamp, failure: &str) -> Plan<Self::Step> {
        let _ = (view, key, now, failure);
        Plan::converged()
    }
}

/// A step and why it is needed.
#[derive(Debug)]
pub struct Planned<S> {
    /// For logs.
    pub reason: String,
    /// The step.
    pub step: S,
}

/// Steps, in order, and when to look again although nothing changed.
#[derive(Debug)]
pub struct Plan<S> {
    /// Steps in order; the rest is dropped when one fails.
    pub steps: Vec<Planned<S>>,
    /// Look again at this time (the end of a grace period, say).
    pub wake_at: Option<Timestamp>,
}

impl<S> Plan<S> {
    /// Nothing to do.
    pub const fn converged() -> Self {
        Self {
            steps: Vec::new(),
            wake_at: None,
        }
    }

    /// Nothing to do before `at`.
    pub const fn look_again(at: Timestamp) -> Self {
        Self {
            steps: Vec::new(),
            wake_at: Some(at),
        }
    }

    /// One step.
    pub fn one(reason: impl Into<String>, step: S) -> Self {
        Self::converged().then(reason, step)
    }

    /// The same with one more step.
    pub fn then(mut self, reason: impl Into<String>, step: S) -> Self {
        self.steps.push(Planned {
            reason: reason.into(),
            step,
        });
        self
    }

    /// The same, to be looked at again at `at`.
    pub fn and_look_again(mut self, at: Option<Timestamp>) -> Self {
        self.wake_at = at;
        self
    }
}

/// What a step achieved.
#[derive(Debug)]
pub enum Progress {
    /// An effect outside the council, or none was needed.
    Done,
    /// A commit; the driver plans again only after the view has it.
    Committed(Commit),
}

/// A commit and what it touched.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its revision.
    pub revision: i64,
    /// Objects that it wrote.
    pub keys: Vec<ObjectKey>,
}

/// By which right a coordinator writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// What it coordinates.
    pub scope: Scope,
    /// Mod revision of its lease.
    pub token: i64,
}

/// What steps may use.
#[derive(Clone)]
pub struct StepCtx {
    /// The council.
    pub objects: Objects,
    /// The group that holds the tenants' key spaces.
    pub tenants: Arc<dyn Store>,
    /// Seals the tenants' keys.
    pub sealer: Sealer,
    /// By which right.
    pub fence: Fence,
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
}

impl StepCtx {
    /// Commits a new content of one object that stands at `expected`.
    pub async fn update<Spec, Stat>(
        &self,
        key: ObjectKey,
        object: &Object<Spec, Stat>,
        expected: i64,
    ) -> Result<Progress, StepError>
    where
        Object<Spec, Stat>: Serialize + Clone,
    {
        let value = encode(object)?;
        self.commit(vec![Op::Update { key, value, expected }]).await
    }

    /// Commits `ops` if this coordinator still holds its lease and every expected revision holds: all or nothing.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Progress, StepError> {
        let keys: Vec<ObjectKey> = ops.iter().filter_map(written).cloned().collect();
        let names: Vec<String> = ops.iter().map(|op| describe(key_of(op))).collect();
        let mut fenced = vec![Op::Require {
            key: self.fence.scope.lease_key(),
            revision: self.fence.token,
        }];
        fenced.extend(ops);
        match timeout(self.clock.as_ref(), COMMIT_LIMIT, self.objects.commit(fenced)).await {
            Ok(Ok(revision)) => Ok(Progress::Committed(Commit { revision, keys })),
            Ok(Err(ObjectError::Failed { index: 0, .. })) => Err(StepError::Fenced(self.fence.scope.clone())),
            Ok(Err(ObjectError::Failed { index, .. })) => Err(StepError::Conflict(
                names.into_iter().nth(index - 1).unwrap_or_default(),
            )),
            Ok(Err(error)) => Err(StepError::Council(error)),
            Err(_) => Err(StepError::Timeout("committing to the council")),
        }
    }
}

fn key_of(op: &Op) -> &ObjectKey {
    match op {
        Op::Create { key, .. } | Op::Update { key, .. } | Op::Delete { key, .. } | Op::Require { key, .. } => key,
    }
}

fn written(op: &Op) -> Option<&ObjectKey> {
    match op {
        Op::Create { key, .. } | Op::Update { key, .. } | Op::Delete { key, .. } => Some(key),
        Op::Require { .. } => None,
    }
}

fn describe(key: &ObjectKey) -> String {
    if key.namespace.is_empty() {
        return format!("{} {}", key.kind.kind, key.name);
    }
    format!("{} {}/{}", key.kind.kind, key.namespace, key.name)
}

/// The stored form of an object: JSON without the revision, which is filled in on read.
pub fn encode<Spec, Stat>(object: &Object<Spec, Stat>) -> Result<Bytes, StepError>
where
    Object<Spec, Stat>: Serialize + Clone,
{
    let mut object = object.clone();
    object.metadata.resource_version.clear();
    serde_json::to_vec(&object)
        .map(Bytes::from)
        .map_err(|source| StepError::Json {
            what: format!("{} {}", object.kind, object.metadata.name),
            source,
        })
}
