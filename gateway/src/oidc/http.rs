//! Requests to identity providers, as the OpenID Connect library wants them.

use crate::error::GatewayError;
use crate::https::Https;
use futures::FutureExt;
use futures::future::BoxFuture;
use hanse_runtime::clock::{SharedClock, timeout};
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Time for one exchange, connecting and the wait for a place included.
const EXCHANGE: Duration = Duration::from_secs(20);
/// Exchanges with one provider at once; further logins wait for their turn.
const AT_ONCE: usize = 32;

/// Why a provider gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct HttpError(String);

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<HttpResponse, HttpError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.send(request).boxed()
    }
}

/// A client of one provider.
pub(super) struct Http {
    https: Https,
    clock: SharedClock,
    places: Semaphore,
}

impl Http {
    /// That trusts the authorities in `ca` (PEM), or the system's.
    pub(super) fn new(id: &str, ca: Option<&str>, clock: SharedClock) -> Result<Self, GatewayError> {
        let https = Https::new(ca, clock.clone()).map_err(|fault| GatewayError::IdentityProvider {
            id: id.to_owned(),
            fault,
        })?;
        Ok(Self {
            https,
            clock,
            places: Semaphore::new(AT_ONCE),
        })
    }

    /// One exchange. What is told of a fault holds neither the query nor the body: codes and secrets are in them.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let place = format!("{host}{}", request.uri().path());
        let work = async {
            let _place = self.places.acquire().await.map_err(|e| e.to_string())?;
            self.https.exchange(request, EXCHANGE).await
        };
        let answer = timeout(self.clock.as_ref(), EXCHANGE, work).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", EXCHANGE.as_secs())));
        answer.map_err(|why| HttpError(format!("{place}: {why}")))
    }
}
