//! Events to an HTTPS endpoint, as `EventList` of `audit.k8s.io/v1`, as API servers of Kubernetes send them.

use super::{AuditSinkFiles, DELIVERY, Way};
use crate::audit::settings::WebhookSink;
use crate::https::Https;
use async_trait::async_trait;
use hanse_runtime::clock::SharedClock;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Uri};
use serde_json::{Value, json};
use std::sync::Arc;

/// An endpoint.
pub(super) struct Webhook {
    url: Uri,
    authorization: Option<HeaderValue>,
    https: Https,
}

impl Webhook {
    pub(super) fn new(settings: &WebhookSink, files: &AuditSinkFiles, clock: SharedClock) -> Result<Self, String> {
        let bearer = |token: &String| {
            let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
            let mut value = value.map_err(|_| "token_file: what it holds cannot be sent as a header".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        };
        Ok(Self {
            url: settings.url.parse().map_err(|e| format!("url: {e}"))?,
            authorization: files.token.as_ref().map(bearer).transpose()?,
            https: Https::new(files.ca.as_deref(), clock)?,
        })
    }

    async fn post(&self, events: &[Value]) -> Result<(), String> {
        let list = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "EventList",
            "metadata": {},
            "items": events,
        });
        let mut request = Request::post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(list.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let answer = self.https.exchange(request, DELIVERY).await?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("it answered {}", answer.status()))
        }
    }
}

/// Way to an endpoint. Nothing but the host is told of its address: paths of webhooks may be secret.
pub(super) struct ToWebhook(pub(super) Arc<Webhook>);

#[async_trait]
impl Way for ToWebhook {
    async fn deliver(&mut self, events: &[Value]) -> Result<(), String> {
        let host = self.0.url.host().unwrap_or_default();
        self.0.post(events).await.map_err(|fault| format!("{host}: {fault}"))
    }
}
