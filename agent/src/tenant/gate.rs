//! When users' requests may reach a tenant's API server: not before it can judge them.
//!
//! A kube-apiserver that starts listens before it has its default roles, and refuses everybody until it has. Its
//! `/readyz` says when they are there. The binding of the tenant's admins is put in by the agent, and counts only once
//! the API server has seen it itself, so it is asked. Until then users get a 503 that says when to try again, which
//! clients do, and not a 403, which they take for an answer.

use super::health::bind_admins;
use crate::api_proxy::ApiTarget;
use hanse_api::access::GROUP_TENANT_ADMINS;
use hanse_runtime::clock::{Clock, timeout};
use hanse_runtime::supervisor::chain;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use std::sync::Arc;
use std::time::Duration;

/// How long the admins' binding may take to be in force. After that it never will be: the tenant has changed it.
const IN_FORCE: Duration = Duration::from_secs(5);
/// How often is asked meanwhile. The API server hears of its own writes within milliseconds.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Keeps requests out until the API server can judge them, once per start of it.
#[derive(Debug)]
pub(super) struct Gate {
    target: Arc<ApiTarget>,
    /// It judged requests before this agent looked.
    known: bool,
}

impl Gate {
    /// A gate before `target`. One that is `known` was open before: nothing but a start that goes on keeps it shut.
    pub(super) fn new(target: Arc<ApiTarget>, known: bool) -> Self {
        Self { target, known }
    }

    pub(super) fn is_open(&self) -> bool {
        self.target.is_open()
    }

    /// Opens it if the last look at the API server allows that.
    pub(super) async fn looked(&self, client: &Client, serving: bool, started: bool, clock: &dyn Clock) {
        if !self.is_open() && (serving || self.known && started) && self.admins_may_come(client, clock).await {
            self.target.open();
        }
    }

    /// Whether nothing is gained by waiting further.
    async fn admins_may_come(&self, client: &Client, clock: &dyn Clock) -> bool {
        let mut bound = false;
        let settle = async {
            if !admins_may(client).await? {
                bind_admins(client).await?;
                bound = true;
                while !admins_may(client).await? {
                    clock.sleep(ASK_AGAIN).await;
                }
            }
            Ok::<(), kube::Error>(())
        };
        let settled = timeout(clock, IN_FORCE, settle).await;
        let (why, enough) = match settled {
            Ok(Ok(())) => return true,
            // The tenant refuses the binding, by a webhook perhaps. Who else may do something there must get in to
            // mend it.
            Ok(Err(error)) => (
                chain(&error),
                matches!(&error, kube::Error::Api(status) if status.code < 500),
            ),
            Err(elapsed) => (elapsed.to_string(), bound),
        };
        let tenant = self.target.tenant();
        tracing::warn!(tenant, error = why, "the binding of tenant admins is not in force");
        enough || self.known
    }
}

/// Whether the API server lets the tenant's admins do everything. It answers from memory.
async fn admins_may(client: &Client) -> Result<bool, kube::Error> {
    let everything = ResourceAttributes {
        group: Some("*".into()),
        resource: Some("*".into()),
        verb: Some("*".into()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            groups: Some(vec![GROUP_TENANT_ADMINS.into()]),
            resource_attributes: Some(everything),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
