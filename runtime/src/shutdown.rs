//! Ordered end of a process: phases, each cancelled in turn and given a deadline.

use std::fmt;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What stops when. Earlier phases end before later ones begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Listeners close, readiness goes off.
    Refuse,
    /// Requests in flight and watches end.
    Drain,
    /// Controllers stop after the current step.
    Controllers,
    /// Agents are told to go elsewhere.
    Agents,
    /// Leadership is handed over, consensus stops.
    Consensus,
    /// Engines are flushed and closed.
    Flush,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 6] = [
        Self::Refuse,
        Self::Drain,
        Self::Controllers,
        Self::Agents,
        Self::Consensus,
        Self::Flush,
    ];

    const fn index(self) -> usize {
        match self {
            Self::Refuse => 0,
            Self::Drain => 1,
            Self::Controllers => 2,
            Self::Agents => 3,
            Self::Consensus => 4,
            Self::Flush => 5,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Drain => "drain",
            Self::Controllers => "controllers",
            Self::Agents => "agents",
            Self::Consensus => "consensus",
            Self::Flush => "flush",
        })
    }
}

/// Tells tasks that their phase has come. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    tokens: Arc<[CancellationToken; 6]>,
}

impl Shutdown {
    /// A process that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token that is cancelled when `phase` begins.
    pub fn phase(&self, phase: Phase) -> CancellationToken {
        self.tokens[phase.index()].clone()
    }

    /// Begins `phase` (and every earlier one).
    pub fn begin(&self, phase: Phase) {
        for token in &self.tokens[..=phase.index()] {
            token.cancel();
        }
    }

    /// Completes when the shutdown begins.
    pub async fn cancelled(&self) {
        self.tokens[0].cancelled().await;
    }

    /// Whether the shutdown has begun.
    pub fn is_cancelled(&self) -> bool {
        self.tokens[0].is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_begin_in_order() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_cancelled());
        shutdown.begin(Phase::Controllers);
        for phase in Phase::ALL {
            assert_eq!(
                shutdown.phase(phase).is_cancelled(),
                phase <= Phase::Controllers,
                "{phase}"
            );
        }
    }
}
