//! Frames, as a pure codec: one byte of kind, four bytes of length (big endian), payload.
//!
//! Nothing here does IO. [`Decoder::next`] takes what has arrived and gives back whole messages, and the bytes of DATA frames
//! as they come, so that a body is passed on without waiting for the end of its frame. Lengths are checked before a byte of
//! the payload is kept.

use crate::error::TunnelError;
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before a payload.
pub const HEADER_LEN: usize = 5;
/// Longest head of a request or response.
pub const HEAD_MAX: usize = 1 << 20;
/// Longest DATA payload.
pub const DATA_MAX: usize = 64 << 10;
/// Longest trailers.
pub const TRAILERS_MAX: usize = 64 << 10;
/// Longest intent or report: a few thousand tenants with their keys.
pub const STATE_MAX: usize = 16 << 20;
/// Longest enrolment message.
pub const ENROL_MAX: usize = 64 << 10;
/// Longest message of the session's own talk.
pub const TALK_MAX: usize = 4 << 10;

/// What a frame carries. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Head of a Kubernetes API request.
    RequestHead = 1,
    /// Head of a response.
    ResponseHead = 2,
    /// Head of a call to a tenant's store.
    StoreHead = 3,
    /// A piece of a body.
    Data = 4,
    /// End of a body; may be empty. A body without it was cut short.
    Trailers = 5,
    /// First message of an agent.
    Hello = 6,
    /// The server's answer.
    Welcome = 7,
    /// Desired state for the agent.
    Intent = 8,
    /// The server shuts down.
    Drain = 9,
    /// Observed state of the agent.
    Report = 10,
    /// The report was taken in.
    Ack = 11,
    /// Token and certificate request.
    EnrolRequest = 12,
    /// Certificate or refusal.
    EnrolAnswer = 13,
    /// Means nothing; its arrival is acknowledged by the transport, which proves that the other end lives.
    Ping = 14,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::RequestHead,
        Self::ResponseHead,
        Self::StoreHead,
        Self::Data,
        Self::Trailers,
        Self::Hello,
        Self::Welcome,
        Self::Intent,
        Self::Drain,
        Self::Report,
        Self::Ack,
        Self::EnrolRequest,
        Self::EnrolAnswer,
        Self::Ping,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Longest payload.
    pub const fn limit(self) -> usize {
        match self {
            Self::RequestHead | Self::ResponseHead | Self::StoreHead => HEAD_MAX,
            Self::Data => DATA_MAX,
            Self::Trailers => TRAILERS_MAX,
            Self::Intent | Self::Report => STATE_MAX,
            Self::EnrolRequest | Self::EnrolAnswer => ENROL_MAX,
            Self::Hello | Self::Welcome | Self::Drain | Self::Ack | Self::Ping => TALK_MAX,
        }
    }

    /// For error messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestHead => "request head",
            Self::ResponseHead => "response head",
            Self::StoreHead => "store call head",
            Self::Data => "body frame",
            Self::Trailers => "trailers",
            Self::Hello => "hello",
            Self::Welcome => "welcome",
            Self::Intent => "intent",
            Self::Drain => "drain message",
            Self::Report => "report",
            Self::Ack => "acknowledgement",
            Self::EnrolRequest => "enrolment request",
            Self::EnrolAnswer => "enrolment answer",
            Self::Ping => "ping",
        }
    }
}

/// Which frames may appear on a stream. Others end it, before anything is kept of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// One HTTP exchange.
    Exchange,
    /// The control stream of a session.
    Control,
    /// One report and its acknowledgement.
    Report,
    /// One enrolment.
    Enrol,
}

impl Grammar {
    /// Whether `kind` may appear.
    pub const fn allows(self, kind: Kind) -> bool {
        match self {
            Self::Exchange => matches!(
                kind,
                Kind::RequestHead | Kind::ResponseHead | Kind::StoreHead | Kind::Data | Kind::Trailers
            ),
            Self::Control => matches!(
                kind,
                Kind::Hello | Kind::Welcome | Kind::Intent | Kind::Drain | Kind::Ping
            ),
            Self::Report => matches!(kind, Kind::Report | Kind::Ack),
            Self::Enrol => matches!(kind, Kind::EnrolRequest | Kind::EnrolAnswer),
        }
    }
}

/// Something that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A whole message.
    Message(Kind, Bytes),
    /// Bytes of a body; not empty.
    Data(Bytes),
}

/// Takes frames apart as they arrive.
#[derive(Debug)]
pub struct Decoder {
    grammar: Grammar,
    data_left: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub const fn new(grammar: Grammar) -> Self {
        Self { grammar, data_left: 0 }
    }

    /// The next item in `buffer`, or `None` when more bytes are needed.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Item>, TunnelError> {
        if self.data_left > 0 {
            if buffer.is_empty() {
                return Ok(None);
            }
            let bytes = buffer.split_to(self.data_left.min(buffer.len())).freeze();
            self.data_left -= bytes.len();
            return Ok(Some(Item::Data(bytes)));
        }
        let Some((kind, len)) = self.header(buffer)? else {
            return Ok(None);
        };
        if kind == Kind::Data {
            buffer.advance(HEADER_LEN);
            self.data_left = len;
            return self.next(buffer);
        }
        if buffer.len() < HEADER_LEN + len {
            return Ok(None);
        }
        buffer.advance(HEADER_LEN);
        Ok(Some(Item::Message(kind, buffer.split_to(len).freeze())))
    }

    fn header(&self, buffer: &BytesMut) -> Result<Option<(Kind, usize)>, TunnelError> {
        let Some((&[kind, a, b, c, d], _)) = buffer.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let Some(known) = Kind::from_number(kind) else {
            return Err(TunnelError::malformed("frame", format!("unknown kind {kind}")));
        };
        if !self.grammar.allows(known) {
            return Err(TunnelError::malformed(
                "frame",
                format!("no {} may come here", known.name()),
            ));
        }
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if len > known.limit() {
            return Err(TunnelError::TooLarge {
                what: known.name(),
                limit: known.limit(),
            });
        }
        if known == Kind::Data && len == 0 {
            return Err(TunnelError::malformed("frame", "an empty body frame"));
        }
        Ok(Some((known, len)))
    }

    /// Whether the stream may end here, with `buffer` left over.
    pub fn at_boundary(&self, buffer: &BytesMut) -> bool {
        self.data_left == 0 && buffer.is_empty()
    }
}

/// Appends the header of a frame. `len` must be within the kind's limit.
pub fn put_header(kind: Kind, len: usize, out: &mut BytesMut) -> Result<(), TunnelError> {
    if len > kind.limit() {
        return Err(TunnelError::TooLarge {
            what: kind.name(),
            limit: kind.limit(),
        });
    }
    let len = u32::try_from(len).map_err(|_too_long| TunnelError::TooLarge {
        what: kind.name(),
        limit: kind.limit(),
    })?;
    out.put_u8(kind as u8);
    out.put_u32(len);
    Ok(())
}

/// A whole frame.
pub fn put(kind: Kind, payload: &[u8], out: &mut BytesMut) -> Result<(), TunnelError> {
    out.reserve(HEADER_LEN + payload.len());
    put_header(kind, payload.len(), out)?;
    out.put_slice(payload);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(decoder: &mut Decoder, buffer: &mut BytesMut) -> Result<Vec<Item>, TunnelError> {
        let mut items = Vec::new();
        while let Some(item) = decoder.next(buffer)? {
            items.push(item);
        }
        Ok(items)
    }

    #[test]
    fn refusals() {
        let cases: [(&[u8], Grammar, &str); 6] = [
            (&[99, 0, 0, 0, 0], Grammar::Exchange, "unknown kind 99"),
            (&[0, 0, 0, 0, 0], Grammar::Exchange, "unknown kind 0"),
            (&[4, 0, 1, 0, 1], Grammar::Exchange, "body frame is larger than 65536"),
            (
                &[1, 0, 16, 0, 1],
                Grammar::Exchange,
                "request head is larger than 1048576",
            ),
            (&[4, 0, 0, 0, 0], Grammar::Exchange, "an empty body frame"),
            (&[8, 0, 0, 0, 0], Grammar::Enrol, "no intent may come here"),
        ];
        for (bytes, grammar, want) in cases {
            let fault = Decoder::new(grammar)
                .next(&mut BytesMut::from(bytes))
                .unwrap_err()
                .to_string();
            assert!(fault.contains(want), "{fault}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 0usize..600) {
            for grammar in [Grammar::Exchange, Grammar::Control, Grammar::Report, Grammar::Enrol] {
                let mut decoder = Decoder::new(grammar);
                let (first, second) = bytes.split_at(cut.min(bytes.len()));
                let mut buffer = BytesMut::from(first);
                if drain(&mut decoder, &mut buffer).is_ok() {
                    buffer.extend_from_slice(second);
                    let _outcome = drain(&mut decoder, &mut buffer).is_ok();
                }
            }
        }

        #[test]
        fn frames_survive_any_splitting(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..8),
            step in 1usize..64,
        ) {
            let mut wire = BytesMut::new();
            for (i, payload) in payloads.iter().enumerate() {
                let kind = if i % 3 == 2 { Kind::ResponseHead } else { Kind::Data };
                put(kind, payload, &mut wire).unwrap();
            }
            put(Kind::Trailers, &[], &mut wire).unwrap();
            let mut decoder = Decoder::new(Grammar::Exchange);
            let (mut buffer, mut items) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                buffer.extend_from_slice(piece);
                items.extend(drain(&mut decoder, &mut buffer).unwrap());
            }
            prop_assert!(decoder.at_boundary(&buffer));
            prop_assert_eq!(items.last().unwrap(), &Item::Message(Kind::Trailers, Bytes::new()));
            let got: Vec<u8> = items.iter().flat_map(|item| match item {
                Item::Data(bytes) | Item::Message(_, bytes) => bytes.to_vec(),
            }).collect();
            prop_assert_eq!(got, payloads.concat());
        }
    }
}
