//! A gateway that knows identity providers.

#[path = "../oidc-provider/browser.rs"]
mod browser;

pub use browser::{Browser, Page, RealProvider, SECRET, authority, exchange, leaf, parameter};

use crate::world::World;
use futures::future::BoxFuture;
use hanse_api::Timestamp;
use hanse_gateway::{GatewayParts, Oidc, OidcFiles, OidcIssuer};
use hanse_runtime::clock::{Clock, SharedClock, SystemClock};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::seal::Sealer;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// The settings of an issuer, with `more` over the defaults.
pub fn settings(id: &str, issuer: &str, more: &Value) -> OidcIssuer {
    let mut all = serde_json::json!({ "id": id, "issuer": issuer, "client_id": "hanse" });
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

/// A gateway with its address, before it serves.
pub struct Front {
    pub listener: TcpListener,
    pub url: String,
}

impl Front {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        Self { listener, url }
    }

    pub fn callback(&self, id: &str) -> String {
        format!("{}/auth/{id}/callback", self.url)
    }

    /// Serves with `issuers`, each with its authority. The parts are given too, for further servers of the installation.
    pub async fn serve(self, issuers: Vec<(OidcIssuer, &str)>) -> (World, GatewayParts) {
        self.serve_by(issuers, SystemClock::shared(), Duration::from_secs(3600))
            .await
    }

    /// The same by another clock, and with logins that hold for `session`.
    pub async fn serve_by(
        self,
        issuers: Vec<(OidcIssuer, &str)>,
        clock: SharedClock,
        session: Duration,
    ) -> (World, GatewayParts) {
        let rng = SystemRng::shared();
        let sealer = Sealer::from_key(&Sealer::generate(rng.as_ref())).unwrap();
        let with_files = |(issuer, ca): (OidcIssuer, &str)| {
            let files = OidcFiles {
                client_secret: Some(SECRET.to_owned()),
                ca: Some(ca.to_owned()),
            };
            (issuer, files)
        };
        let issuers = issuers.into_iter().map(with_files).collect();
        let oidc = Oidc::new(issuers, sealer, &self.url, session, &clock).unwrap();
        let mut kept = None;
        let world = World::at(self.listener, |parts| {
            parts.oidc = Some(Arc::new(oidc));
            parts.clock = clock;
            kept = Some(parts.clone());
        })
        .await;
        (world, kept.unwrap())
    }
}

/// The machine's clock, some time ahead.
pub struct Ahead {
    system: SharedClock,
    by: AtomicU64,
}

impl Ahead {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            system: SystemClock::shared(),
            by: AtomicU64::new(0),
        })
    }

    /// Lets `time` go by for those who look at the time of day.
    pub fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap();
        self.by.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn wall(&self) -> Timestamp {
        let by = self.by.load(Ordering::SeqCst);
        self.system.wall().plus(Duration::from_millis(by))
    }

    fn mono(&self) -> Duration {
        self.system.mono()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.system.sleep(duration)
    }
}
