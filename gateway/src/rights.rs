//! Rights of requests that go on for long: looked at again whenever somebody's might have changed, so that revoking a key
//! also ends the watches and shells that were opened with it.

use crate::authn::Identity;
use crate::authz::RoleCache;
use crate::meters::Counted;
use crate::{Inner, authz};
use futures::future::{BoxFuture, FutureExt};
use hanse_api::access::{GROUP_ADMINS, Principal, Role, Target};
use hanse_api::status::{Reason, Status};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What was asked on, owned.
#[derive(Clone, Debug)]
pub(crate) enum OwnedTarget {
    Resource {
        group: String,
        resource: String,
        namespace: String,
        name: String,
    },
    Tenant {
        project: String,
        name: String,
    },
    Cluster {
        name: String,
    },
    Path(&'static str),
}

impl OwnedTarget {
    pub(crate) fn borrow(&self) -> Target<'_> {
        match self {
            Self::Resource {
                group,
                resource,
                namespace,
                name,
            } => Target::Resource {
                group,
                resource,
                subresource: None,
                namespace: Some(namespace.as_str()).filter(|t| !t.is_empty()),
                name: Some(name.as_str()).filter(|t| !t.is_empty()),
            },
            Self::Tenant { project, name } => Target::Tenant { project, name },
            Self::Cluster { name } => Target::Cluster { name },
            Self::Path(path) => Target::Path(path),
        }
    }
}

/// Why a request that goes on for long must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The caller is nobody any more, or the server drains.
    Over,
    /// The caller is still known, but what he may see is not what it was: a watch that went on from here would miss things.
    Changed,
}

/// By which right a request runs.
#[derive(Clone)]
pub(crate) struct Right {
    pub(crate) identity: Identity,
    /// Who it runs as, when that is not the caller himself.
    pub(crate) impersonated: Option<Principal>,
    pub(crate) verbs: Vec<String>,
    pub(crate) target: OwnedTarget,
    /// Whether it shows only what the caller may get by himself: then it goes on while he may not have all, and is in the
    /// same groups.
    pub(crate) partial: bool,
}

/// A place among the requests that may go on for long. Dropping it frees it.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Right {
    /// Completes when the right has ended.
    pub(crate) async fn ended(self, inner: Arc<Inner>) -> Ending {
        let mut changes = inner.changes.clone();
        let roles = self.roles(&inner).await;
        loop {
            let clock = &inner.parts.clock;
            let expiry: BoxFuture<'static, ()> = match self.identity.expires {
                Some(end) => clock.sleep(end.since(clock.wall())),
                None => futures::future::pending().boxed(),
            };
            tokio::select! {
                () = changes.changed() => {}
                () = expiry => {}
            }
            if let Some(ending) = self.lost(&inner, &roles).await {
                return ending;
            }
        }
    }

    fn principal(&self) -> &Principal {
        self.impersonated.as_ref().unwrap_or(&self.identity.principal)
    }

    /// Management roles of a caller who sees a part: with others he may see another one.
    async fn roles(&self, inner: &Inner) -> Vec<Role> {
        if self.partial {
            RoleCache::new(&inner.backend, self.principal()).management().await
        } else {
            Vec::new()
        }
    }

    /// How the right has ended, if it has.
    async fn lost(&self, inner: &Inner, roles: &[Role]) -> Option<Ending> {
        let now = match inner.authenticator.again(&self.identity).await {
            Ok(now) => now,
            // A store that cannot be read revokes nothing.
            Err(error) => return (error.reason == Reason::Unauthorized).then_some(Ending::Over),
        };
        if self.impersonated.is_some() && !now.principal.is_in(GROUP_ADMINS) {
            return Some(Ending::Over);
        }
        let principal = self.impersonated.as_ref().unwrap_or(&now.principal);
        let verbs: Vec<&str> = self.verbs.iter().map(String::as_str).collect();
        let may = authz::authorize(&inner.backend, principal, &verbs, &self.target.borrow()).await;
        if !self.partial {
            return may
                .err()
                .filter(|e| e.reason == Reason::Forbidden)
                .map(|_| Ending::Changed);
        }
        let same = principal == self.principal() && self.roles(inner).await == roles;
        (may.is_ok() || !same).then_some(Ending::Changed)
    }
}

impl Inner {
    /// A place among the long-running requests, or 429.
    pub(crate) fn place(&self) -> Result<Place, Box<Status>> {
        let permit = Arc::clone(&self.streams)
            .try_acquire_owned()
            .map_err(|_| self.too_many())?;
        Ok(Place {
            _permit: permit,
            _counted: Counted::new(&self.meters.streams),
        })
    }

    /// 429: nothing was done.
    pub(crate) fn too_many(&self) -> Box<Status> {
        self.meters.refused.inc();
        Box::new(Status::new(Reason::TooManyRequests, "this server has too many requests; try again").retry_after(1))
    }
}
