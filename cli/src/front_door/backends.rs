//! Which gateways there are, how they are, and in which order a connection tries them.

use super::config::BackendConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// What the last health check of a gateway found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// It answers and is ready.
    Ready,
    /// Not checked yet.
    Unknown,
    /// It answers, and says that it is not ready: only as a last resort.
    NotReady,
    /// It does not answer. Its connections are closed.
    Dead,
}

/// One gateway.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    health: watch::Sender<Health>,
}

impl Backend {
    /// What the last check found.
    pub(crate) fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// Notes what a check or a connection found.
    pub(crate) fn found(&self, health: Health) {
        let changed = self
            .health
            .send_if_modified(|old| std::mem::replace(old, health) != health);
        if changed {
            tracing::info!(backend = %self.name, address = %self.address, ?health, "health changed");
        }
    }

    /// Completes when the gateway is found dead.
    pub(crate) async fn died(&self) {
        let mut changes = self.health.subscribe();
        if changes.wait_for(|health| *health == Health::Dead).await.is_err() {
            // The sender lives in this very struct, so this cannot be reached; never ending is then the safe answer.
            std::future::pending::<()>().await;
        }
    }
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Backends {
    list: Arc<[Arc<Backend>]>,
    turn: Arc<AtomicUsize>,
}

impl Backends {
    /// As configured, none checked yet.
    pub(crate) fn new(configs: &[BackendConfig]) -> Self {
        let one = |c: &BackendConfig| {
            let health = watch::Sender::new(Health::Unknown);
            Arc::new(Backend {
                name: c.name.clone(),
                address: c.address,
                health,
            })
        };
        Self {
            list: configs.iter().map(one).collect(),
            turn: Arc::default(),
        }
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The one at `number`, counted around.
    pub(crate) fn get(&self, number: usize) -> Arc<Backend> {
        self.list[number % self.list.len()].clone()
    }

    /// All, in the order in which the next connection tries them: the healthiest first, taking turns among equals. Dead
    /// ones come last but are not left out: a check may be late.
    pub(crate) fn order(&self) -> Vec<Arc<Backend>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut order: Vec<_> = (0..self.len()).map(|n| self.get(turn.wrapping_add(n))).collect();
        order.sort_by_key(|backend| backend.health());
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Backends {
        let config = |n: u8| BackendConfig {
            name: format!("b{n}"),
            address: ([127, 0, n, 1], 8443).into(),
        };
        Backends::new(&[config(1), config(2), config(3)])
    }

    fn names(order: &[Arc<Backend>]) -> Vec<&str> {
        order.iter().map(|b| b.name.as_str()).collect()
    }

    #[test]
    fn equals_take_turns() {
        let backends = three();
        let firsts: Vec<String> = (0..6).map(|_| backends.order()[0].name.clone()).collect();
        assert_eq!(firsts, ["b1", "b2", "b3", "b1", "b2", "b3"]);
    }

    #[test]
    fn the_healthy_come_first_and_the_dead_last() {
        let backends = three();
        backends.get(0).found(Health::Dead);
        backends.get(1).found(Health::NotReady);
        backends.get(2).found(Health::Ready);
        for _ in 0..4 {
            assert_eq!(names(&backends.order()), ["b3", "b2", "b1"]);
        }
    }

    #[tokio::test]
    async fn death_is_told_to_those_who_wait_and_to_those_who_come_later() {
        let backend = three().get(0);
        let mut waiting = std::pin::pin!(backend.died());
        assert!(futures::poll!(&mut waiting).is_pending());
        backend.found(Health::NotReady);
        assert!(futures::poll!(&mut waiting).is_pending(), "not ready is not dead");
        backend.found(Health::Dead);
        waiting.await;
        backend.died().await;
    }
}
