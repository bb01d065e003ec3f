//! The feature level of a group: which formats its members may use. It is part of the replicated state and only rises.
//!
//! A program knows all levels up to its own. Commands and records that came with a later level are not made before the group has
//! reached it, and the group's leader raises it only when every member's program knows it. So servers of neighbouring versions
//! work together while they are replaced one by one, and until the level has risen the older program can be put back.
//!
//! | level | what came with it |
//! |---|---|
//! | 1 | everything before there were levels |
//! | 2 | limits of key spaces: command `SetLimits`, space records of format 2 |
//! | 3 | restore of one key space: command `RestoreSpace`, space records of format 3 |

use crate::engine::Cf;
use crate::engine::Reader;
use crate::error::StoreError;
use crate::keys::{self, GroupId};
use crate::machine::Machine;
use crate::machine::record::LevelRecord;
use crate::pb::command::{self, command::Op};

/// Level of a group that never raised it.
pub const FIRST_LEVEL: u32 = 1;
/// Newest level that this program knows.
pub const LEVEL: u32 = 3;

/// Level that a command came with; the format that it says it has.
pub(crate) fn of(op: &Op) -> u32 {
    match op {
        Op::SetLimits(_) => 2,
        Op::RestoreSpace(_) => 3,
        // Whoever does not know the level must not go on.
        Op::SetLevel(set) => set.level.max(2),
        Op::Txn(_)
        | Op::AuditedTxn(_)
        | Op::Compact(_)
        | Op::LeaseGrant(_)
        | Op::LeaseRevoke(_)
        | Op::LeaseKeepAlive(_)
        | Op::ExpireLeases(_)
        | Op::ExtendLeases(_)
        | Op::SetFence(_)
        | Op::DropSpace(_)
        | Op::SetAlarm(_) => FIRST_LEVEL,
    }
}

/// Reads the level of a group; an error if this program is too old for it.
pub(crate) fn load(group: GroupId, engine: &dyn Reader) -> Result<u32, StoreError> {
    let record = engine.get(Cf::Meta, &keys::meta_key(group, keys::META_LEVEL))?;
    let level = match record {
        Some(raw) => LevelRecord::decode(&raw)?.level,
        None => FIRST_LEVEL,
    };
    if level > LEVEL {
        return Err(StoreError::TooNew {
            found: level,
            known: LEVEL,
        });
    }
    Ok(level)
}

/// The command that raises the level to this program's.
pub const fn raise() -> Op {
    Op::SetLevel(command::SetLevel { level: LEVEL })
}

impl Machine {
    /// The group's level, after all that was staged here.
    pub fn level(&self) -> u32 {
        self.stage.lock().level
    }

    /// Refuses what the group's level does not have yet, before it is proposed.
    pub fn check_level(&self, op: &Op) -> Result<(), StoreError> {
        check(self.level(), op)
    }
}

pub(crate) fn check(present: u32, op: &Op) -> Result<(), StoreError> {
    let needed = of(op);
    if needed > present && !matches!(op, Op::SetLevel(_)) {
        return Err(StoreError::LevelTooLow { needed, present });
    }
    Ok(())
}
