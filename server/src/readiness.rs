//! When a server that was started may take users. Agents dial a server that was away with growing waits; a load balancer that
//! chose it before they came would lead users to tenants that it cannot reach. So `/readyz` waits, for a bounded time, until
//! the agents that the other servers hold are connected here too.

use crate::status::{connected, told_agents};
use hanse_consensus::{MemberStatus, Node, NodeId};
use hanse_runtime::clock::SharedClock;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::Store as _;
use hanse_tunnel::AgentHub;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// From the first sight of a leader; a little more than an agent needs to notice a server that came back
/// (`dial` and the greatest `backoff` of [`hanse_tunnel::Settings`]). An agent that cannot reach this server at all must not
/// keep it from serving the others.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Agents that the log names when the time is over.
const NAMED: usize = 10;

/// Starts to wait; the token is cancelled when the wait is over.
pub fn await_agents(
    node: &Node,
    hub: Arc<dyn AgentHub>,
    clock: &SharedClock,
    supervisor: &Supervisor,
) -> CancellationToken {
    let over = CancellationToken::new();
    // Whatever becomes of the task, the server gets ready.
    let guard = over.clone().drop_guard();
    let (node, clock, stop) = (node.clone(), Arc::clone(clock), supervisor.shutdown_token());
    supervisor.spawn(TaskKind::BestEffort, "waiting for agents", async move {
        let _guard = guard;
        tokio::select! {
            () = wait(&node, hub.as_ref(), &clock) => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    });
    over
}

async fn wait(node: &Node, hub: &dyn AgentHub, clock: &SharedClock) {
    while !node.council().has_leader() {
        clock.sleep(LOOK).await;
    }
    let began = clock.mono();
    loop {
        let live = node.cluster_status().await;
        let missing = missing(&live, node.id(), &connected(hub));
        if missing.is_empty() {
            return;
        }
        if clock.mono().saturating_sub(began) >= LIMIT {
            let some: Vec<&String> = missing.iter().take(NAMED).collect();
            tracing::warn!(count = missing.len(), agents = ?some, "ready without agents that other servers hold");
            return;
        }
        clock.sleep(LOOK).await;
    }
}

/// Agents that other servers hold and this one, `own`, does not. Pure.
fn missing(live: &[MemberStatus], own: NodeId, here: &BTreeSet<String>) -> BTreeSet<String> {
    let others = live.iter().filter(|member| member.id != own);
    let held: BTreeSet<String> = others.flat_map(told_agents).collect();
    held.difference(here).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: NodeId, agents: &[&str]) -> MemberStatus {
        MemberStatus {
            id,
            online: true,
            extra: serde_json::to_vec(&serde_json::json!({ "agents": agents })).unwrap(),
            ..MemberStatus::default()
        }
    }

    #[test]
    fn agents_that_any_other_server_holds_are_awaited() {
        let silent = MemberStatus {
            id: 3,
            ..MemberStatus::default()
        };
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let cases: [(&[MemberStatus], &[&str], &[&str]); 5] = [
            (&[member(1, &[]), member(2, &[]), member(3, &[])], &[], &[]),
            (
                &[member(1, &[]), member(2, &["eu"]), member(3, &["eu", "us"])],
                &[],
                &["eu", "us"],
            ),
            (&[member(1, &["eu"]), member(2, &["eu", "us"])], &["eu"], &["us"]),
            // What it held itself when it last answered does not count.
            (&[member(1, &["ap"]), member(2, &["eu"])], &["eu"], &[]),
            (&[member(1, &[]), silent], &[], &[]),
        ];
        for (live, here, expected) in cases {
            assert_eq!(missing(live, 1, &set(here)), set(expected), "{live:?}");
        }
    }
}
