//! Raises the feature level of a group once every member's program knows the newer one.
//!
//! The leader asks all members, voters and learners, over the Raft port. One that does not answer counts as old: a level that a
//! member does not know stops that member. A server that joins later with an older program is refused by the level itself: it
//! stops when it reads the command or the snapshot that carries it.

use crate::codec::pb;
use crate::group::Group;
use crate::status::ask_all;
use crate::types::{Member, NodeId, Seat};
use hanse_runtime::BoxError;
use hanse_state::KeySpace;
use hanse_state::machine::Machine;
use hanse_state::machine::level::{self, FIRST_LEVEL, LEVEL};
use openraft::async_runtime::WatchReceiver;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two times that the members are asked.
const PAUSE: Duration = Duration::from_secs(2);

/// The newest level that everybody knows; somebody who said nothing knows the first only. Pure.
fn common<'a>(replies: impl IntoIterator<Item = Option<&'a pb::StatusReply>>) -> u32 {
    let known = |reply: Option<&pb::StatusReply>| reply.map_or(FIRST_LEVEL, |reply| reply.level.max(FIRST_LEVEL));
    replies.into_iter().map(known).min().unwrap_or(LEVEL).min(LEVEL)
}

impl Group {
    fn seated(&self) -> BTreeMap<NodeId, Member> {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let located = |(id, seat): (&NodeId, &Seat)| (*id, self.peers.locate(*id, &seat.member));
        seen.membership_config.nodes().map(located).collect()
    }

    async fn raise_level(&self) -> Result<(), BoxError> {
        let members = self.seated();
        let replies = ask_all(&self.peers, &members).await;
        if common(replies.iter().map(|(_, reply)| reply.as_ref())) < LEVEL {
            return Ok(());
        }
        let command = Machine::command(0, &KeySpace::Registry, None, level::raise());
        self.propose(command.encode_to_vec().into()).await?;
        tracing::info!(group = %self.id, level = LEVEL, "the feature level has risen");
        Ok(())
    }
}

/// Raises the level whenever this server leads and it can be, until `stop`.
pub async fn raise_for_ever(group: Arc<Group>, stop: CancellationToken) -> Result<(), BoxError> {
    let mut leadership = group.leadership.subscribe();
    while group.machine.level() < LEVEL {
        let lead = async {
            let leads = leadership.wait_for(|now| now.here).await.is_ok();
            if leads {
                if let Err(error) = group.raise_level().await {
                    tracing::debug!(group = %group.id, %error, "the feature level is raised later");
                }
                group.clock().sleep(PAUSE).await;
            }
            leads
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            go_on = lead => if !go_on { return Ok(()) },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_rises_when_everybody_knows_it() {
        let at = |level| pb::StatusReply {
            level,
            ..pb::StatusReply::default()
        };
        let (new, newer, old) = (at(LEVEL), at(LEVEL + 5), at(0));
        assert_eq!(common([]), LEVEL, "alone");
        assert_eq!(common([Some(&new), Some(&newer)]), LEVEL);
        assert_eq!(common([Some(&new), Some(&old)]), FIRST_LEVEL);
        assert_eq!(
            common([Some(&new), None]),
            FIRST_LEVEL,
            "one that is away may be an old one"
        );
    }
}
