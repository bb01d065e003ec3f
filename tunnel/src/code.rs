//! Codes that travel in RESET_STREAM, STOP_SENDING and CONNECTION_CLOSE frames. The numbers are part of the protocol.

use crate::error::TunnelError;
use std::fmt;

/// Why one end gave up a stream or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Nothing is wrong; the rest is not needed.
    None,
    /// The request was not passed on; it is safe to repeat it.
    NotDialed,
    /// The upstream broke off.
    UpstreamReset,
    /// Forbidden by a rule.
    PolicyDenied,
    /// The process shuts down; on a stream: the request was not read.
    Draining,
    /// Took too long.
    Deadline,
    /// Nobody waits for the rest.
    Cancelled,
    /// The protocol was broken.
    Malformed,
    /// A message was too large.
    TooLarge,
    /// Too much at once; the request was not read.
    Busy,
    /// A newer session of the same agent took over.
    Superseded,
    /// The connection gave no sign of life.
    Silent,
    /// The identity's right to connect was withdrawn.
    Revoked,
    /// A code of a later version.
    Other(u32),
}

impl Code {
    const TABLE: [(u32, Self); 13] = [
        (0, Self::None),
        (0x10, Self::NotDialed),
        (0x11, Self::UpstreamReset),
        (0x12, Self::PolicyDenied),
        (0x13, Self::Draining),
        (0x14, Self::Deadline),
        (0x15, Self::Cancelled),
        (0x16, Self::Malformed),
        (0x17, Self::TooLarge),
        (0x18, Self::Busy),
        (0x20, Self::Superseded),
        (0x21, Self::Silent),
        (0x22, Self::Revoked),
    ];

    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            known => Self::TABLE
                .iter()
                .find(|(_, code)| *code == known)
                .map_or(0, |(number, _)| *number),
        }
    }

    /// The meaning of a number.
    pub fn from_number(number: u64) -> Self {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Self::TABLE
            .iter()
            .find(|(known, _)| *known == number)
            .map_or(Self::Other(number), |(_, code)| *code)
    }

    /// What a stream's end with this code means to the end that sees it.
    pub(crate) fn stream_error(self, peer: &str) -> TunnelError {
        let peer = peer.to_owned();
        match self {
            Self::NotDialed => TunnelError::NotDialed {
                peer,
                fault: "its upstream cannot be reached".into(),
            },
            Self::PolicyDenied => TunnelError::PolicyDenied {
                peer,
                fault: "no reason given".into(),
            },
            Self::Draining => TunnelError::Draining { peer },
            Self::Busy => TunnelError::Busy { peer },
            Self::Deadline => TunnelError::Deadline {
                what: format!("{peer}'s upstream"),
            },
            Self::None | Self::Cancelled => TunnelError::Cancelled { peer },
            Self::Malformed => TunnelError::malformed("message", format!("{peer} could not read it")),
            Self::TooLarge => TunnelError::TooLarge {
                what: "the message",
                limit: crate::frame::HEAD_MAX,
            },
            Self::Superseded => TunnelError::Superseded { peer },
            Self::UpstreamReset | Self::Silent | Self::Revoked | Self::Other(_) => TunnelError::UpstreamReset { peer },
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "closed",
            Self::NotDialed => "not dialed",
            Self::UpstreamReset => "upstream reset",
            Self::PolicyDenied => "policy denied",
            Self::Draining => "draining",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Malformed => "malformed message",
            Self::TooLarge => "message too large",
            Self::Busy => "busy",
            Self::Superseded => "superseded by a newer session",
            Self::Silent => "no sign of life",
            Self::Revoked => "revoked",
            Self::Other(number) => return write!(f, "code {number}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_unknown_ones_survive() {
        for (number, code) in Code::TABLE {
            assert_eq!(code.number(), number);
            assert_eq!(Code::from_number(u64::from(number)), code);
        }
        assert_eq!(Code::from_number(77), Code::Other(77));
        assert_eq!(Code::from_number(u64::MAX), Code::Other(u32::MAX));
    }
}
