//! What tests of the audit stand on.

use hanse_runtime::clock::SystemClock;
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::{LogWriter, MemoryEngine, WriterOptions};
use hanse_state::objects::Objects;
use hanse_state::{GroupId, LocalParts, LocalStore};
use std::sync::Arc;

/// A registry in memory, without anything in it.
pub(super) fn objects() -> Objects {
    let parts = LocalParts {
        writer: LogWriter::start(Arc::new(MemoryEngine::new()), WriterOptions::default()).unwrap(),
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        supervisor: Supervisor::default(),
    };
    Objects::new(LocalStore::open(GroupId::COUNCIL, parts).unwrap())
}
