//! What the API server stands on: the registry and the sources of time, chance and live status.

use super::{object, sealed};
use crate::directory::Directory;
use crate::kinds::Kind;
use crate::parts::ClusterStatus;
use bytes::Bytes;
use hanse_api::kinds::KindName;
use hanse_api::status::{Cause, Details, Reason, Status};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_runtime::seal::Sealer;
use hanse_state::StoreError;
use hanse_state::objects::{Author, ObjectError, Objects, Page, Stored};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// How long a reader waits for this server to catch up with a revision that he has seen elsewhere.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Pause between two looks at the applied revision.
const CATCH_UP_STEP: Duration = Duration::from_millis(10);
/// Objects read at once while looking for users of an object.
const SCAN_PAGE: i64 = 500;

/// Handles that every part of the API server needs.
#[derive(Clone)]
pub(crate) struct Backend {
    pub(crate) objects: Objects,
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    /// Seals what no log may hold in clear.
    pub(crate) sealer: Sealer,
    pub(crate) cluster_status: Arc<dyn ClusterStatus>,
    /// SHA-256 of the system's CA certificate, for enrolment tokens.
    pub(crate) ca_sha256: String,
    /// The system's CA certificates, PEM, for those who are to come back.
    pub(crate) ca_pem: String,
    /// Teams and roles.
    pub(crate) directory: Directory,
}

impl Backend {
    /// The same for one request that changes something: its changes carry their audit events.
    pub(crate) fn by(&self, author: Arc<dyn Author>) -> Self {
        let mut audited = self.clone();
        audited.objects = self.objects.by(author);
        audited
    }

    /// The stored object with its `resourceVersion`.
    pub(crate) fn parse(stored: &Stored) -> Result<Value, Box<Status>> {
        let mut value: Value = serde_json::from_slice(&stored.value).map_err(|e| {
            let message = format!(
                "the stored object {}/{} cannot be read: {e}",
                stored.namespace, stored.name
            );
            Box::new(Status::new(Reason::InternalError, message))
        })?;
        object::meta_mut(&mut value).insert("resourceVersion".into(), stored.revision.to_string().into());
        Ok(value)
    }

    /// What clients see of an object of `kind` that [`Backend::parse`] gave.
    pub(crate) fn present(&self, kind: &dyn Kind, parsed: Value) -> Result<Value, Box<Status>> {
        sealed::open(self, kind, parsed).map(|object| kind.present(object))
    }

    /// An object of `kind` as it is stored.
    pub(crate) fn encode(&self, kind: &dyn Kind, object: &Value) -> Result<Bytes, Box<Status>> {
        sealed::encode(self, kind, object)
    }

    /// Waits until this server has applied `revision`.
    pub(crate) async fn caught_up(&self, revision: i64) -> Result<(), Box<Status>> {
        let store = self.objects.store();
        let wait = async {
            while store.revision() < revision {
                self.clock.sleep(CATCH_UP_STEP).await;
            }
        };
        timeout(self.clock.as_ref(), CATCH_UP, wait)
            .await
            .map_err(|_| too_large_version(revision, store.revision()))
    }

    /// Refuses with 409 while an object of `kind` satisfies `uses`; `refusal` says what it is about.
    pub(crate) async fn refuse_while_used(
        &self,
        kind: &KindName,
        refusal: &str,
        uses: impl Fn(&Value) -> bool + Send,
    ) -> Result<(), Box<Status>> {
        let mut page = Page {
            limit: SCAN_PAGE,
            ..Page::default()
        };
        loop {
            let list = self
                .objects
                .list(kind, None, page.clone())
                .await
                .map_err(|e| failed(&e))?;
            for stored in &list.items {
                if uses(&Self::parse(stored)?) {
                    let namespaced = if stored.namespace.is_empty() {
                        String::new()
                    } else {
                        format!("{}/", stored.namespace)
                    };
                    let message = format!("{refusal} ({namespaced}{}); delete them first", stored.name);
                    return Err(Box::new(Status::new(Reason::Conflict, message)));
                }
            }
            let Some(next) = list.next_page(page) else {
                return Ok(());
            };
            page = next;
        }
    }
}

/// 504 in the words by which client-go recognises that it is ahead of the server.
fn too_large_version(wanted: i64, current: i64) -> Box<Status> {
    let details = Details {
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        }],
        retry_after_seconds: Some(1),
        ..Details::default()
    };
    let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
    Box::new(Status::new(Reason::Timeout, message).with_details(details))
}

/// What a caller is told when the registry fails.
pub(crate) fn failed(error: &ObjectError) -> Box<Status> {
    let status = match error {
        ObjectError::Failed { .. } => Status::new(Reason::Conflict, "the object has been modified; please try again"),
        ObjectError::InvalidKey(_) | ObjectError::NoRevision(_) => Status::new(Reason::BadRequest, error.to_string()),
        ObjectError::Store(error) => store_failed(error),
    };
    Box::new(status)
}

fn store_failed(error: &StoreError) -> Status {
    match error {
        StoreError::Compacted { .. } => expired(),
        StoreError::FutureRevision { current } => *too_large_version(current.saturating_add(1), *current),
        StoreError::TooLarge => Status::new(
            Reason::RequestEntityTooLarge,
            "Request entity too large: the object does not fit the store",
        ),
        StoreError::Overloaded => {
            Status::new(Reason::TooManyRequests, "the store has too much to do; try again").retry_after(1)
        }
        // Nobody was asked, so trying again is safe for every verb.
        StoreError::NoLeader => Status::new(
            Reason::ServiceUnavailable,
            "the control plane has no leader now (no quorum); try again",
        )
        .retry_after(1),
        StoreError::Restoring(_) | StoreError::LevelTooLow { .. } => {
            Status::new(Reason::ServiceUnavailable, error.to_string()).retry_after(5)
        }
        StoreError::LeaderChanged | StoreError::Timeout | StoreError::Stopped => {
            let message = format!("the store did not confirm: {error}; look before you try again");
            Status::new(Reason::Timeout, message)
        }
        other => {
            tracing::error!(error = %other, "the store failed a request");
            Status::new(Reason::InternalError, format!("the store failed: {other}"))
        }
    }
}

/// 410: the wanted revision is gone.
pub(crate) fn expired() -> Status {
    Status::new(
        Reason::Expired,
        "The resourceVersion for the provided list or watch is too old.",
    )
}
