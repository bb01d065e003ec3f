//! Asks one gateway for `/readyz`, four times a second over one kept connection. The connection's end is the fastest
//! sign of a death, so it is checked again at once.

use super::backends::{Backend, Backends, Health};
use crate::client::http::{Fault, Http, Stage};
use crate::client::tls::Trust;
use crate::client::url::BaseUrl;
use crate::error::Result;
use bytes::Bytes;
use hanse_runtime::clock::{SharedClock, timeout};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;

/// Between two checks.
const INTERVAL: Duration = Duration::from_millis(250);
/// For one check. A process that hangs is found after two.
const LIMIT: Duration = Duration::from_secs(1);
/// Between tries while nobody listens.
const RETRY: Duration = Duration::from_millis(100);
/// Checks that must fail in a row before a gateway that does not refuse counts as dead.
const PATIENCE: u32 = 2;
/// Of the answer's body, which is not looked at.
const BODY_MAX: usize = 64 * 1024;

/// The health check of one gateway.
pub(super) struct Probe {
    backend: Arc<Backend>,
    http: Http,
    clock: SharedClock,
}

impl Probe {
    pub(super) fn new(backends: &Backends, number: usize, ca: &str, clock: &SharedClock) -> Result<Self> {
        let backend = backends.get(number);
        let base = BaseUrl::parse(&format!("https://{}", backend.address))?;
        let http = Http::new(base, &Trust::Pinned(ca.to_owned()), None, clock.clone())?;
        Ok(Self {
            backend,
            http,
            clock: clock.clone(),
        })
    }

    pub(super) async fn run(self) {
        let mut failures = 0;
        loop {
            let fault = self.connection(&mut failures).await;
            failures += 1;
            if fault.stage == Stage::Refused || failures >= PATIENCE {
                self.backend.found(Health::Dead);
            }
            tracing::debug!(backend = %self.backend.name, fault = %fault.why, "health check failed");
            self.clock.sleep(RETRY).await;
        }
    }

    /// Checks over one connection until it ends.
    async fn connection(&self, failures: &mut u32) -> Fault {
        let fault = |stage, why: String| Fault { stage, why };
        let stream = match timeout(&*self.clock, LIMIT, self.http.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(fault)) => return fault,
            Err(late) => return fault(Stage::Connect, late.to_string()),
        };
        let (mut sender, connection) = match http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await {
            Ok(parts) => parts,
            Err(error) => return fault(Stage::Exchange, error.to_string()),
        };
        let checks = async {
            loop {
                match timeout(&*self.clock, LIMIT, self.check(&mut sender)).await {
                    Ok(Ok(health)) => {
                        *failures = 0;
                        self.backend.found(health);
                    }
                    Ok(Err(why)) => return fault(Stage::Exchange, why),
                    Err(late) => return fault(Stage::Exchange, late.to_string()),
                }
                self.clock.sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            fault = checks => fault,
            ended = connection => {
                let why = ended.err().map_or_else(|| "closed".to_owned(), |e| e.to_string());
                fault(Stage::Exchange, why)
            }
        }
    }

    async fn check(&self, sender: &mut http1::SendRequest<Empty<Bytes>>) -> std::result::Result<Health, String> {
        let request = http::Request::get("/readyz")
            .header(http::header::HOST, self.http.base().authority())
            .body(Empty::new())
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let ready = response.status().is_success();
        // Read to its end, or the connection cannot be used again.
        Limited::new(response.into_body(), BODY_MAX)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        Ok(if ready { Health::Ready } else { Health::NotReady })
    }
}
