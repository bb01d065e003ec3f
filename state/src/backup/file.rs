//! The form of a backup file: a word that says what it is, then frames behind their lengths, the last of which holds the sum
//! of all before. Nothing of a file is believed before its end was seen; see [`verify`].

use super::{BackupError, Count, FORMAT, SpaceSummary, Summary};
use crate::keys::{GroupId, KeySpace};
use crate::machine::space::DROPPED;
use crate::pb::backup::{Frame, Group, Head, Rows, Space, SpaceEnd, Tail, frame};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use std::io::Read;

/// First bytes of a file.
pub const MAGIC: &[u8; 8] = b"hansebk1";
/// Largest frame that is accepted: a piece and one row of the largest request.
pub const MAX_FRAME: usize = 4 << 20;

/// The sum over a file.
struct Sum {
    digest: Context,
    frames: u64,
}

impl Sum {
    fn new() -> Self {
        let mut digest = Context::new(&SHA256);
        digest.update(MAGIC);
        Self { digest, frames: 0 }
    }

    fn add(&mut self, length: [u8; 4], frame: &[u8]) {
        self.digest.update(&length);
        self.digest.update(frame);
        self.frames += 1;
    }

    fn tail(&self) -> Tail {
        Tail {
            frames: self.frames,
            sha256: Bytes::copy_from_slice(self.digest.clone().finish().as_ref()),
        }
    }
}

/// Makes the bytes of a file, frame by frame.
pub(super) struct Framer {
    sum: Sum,
    begun: bool,
}

impl Framer {
    pub(super) fn new() -> Self {
        Self {
            sum: Sum::new(),
            begun: false,
        }
    }

    pub(super) fn frame(&mut self, frame: frame::Frame) -> Bytes {
        let last = matches!(frame, frame::Frame::Tail(_));
        let body = Frame { frame: Some(frame) }.encode_to_vec();
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut out = BytesMut::with_capacity(MAGIC.len() + 4 + body.len());
        if !std::mem::replace(&mut self.begun, true) {
            out.put_slice(MAGIC);
        }
        out.put_slice(&length);
        out.put_slice(&body);
        if !last {
            self.sum.add(length, &body);
        }
        out.freeze()
    }

    pub(super) fn tail(&mut self) -> Bytes {
        let tail = self.sum.tail();
        self.frame(frame::Frame::Tail(tail))
    }
}

/// One part of a file, in the file's order.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A group begins.
    Group(Group),
    /// A space begins.
    Space(KeySpace, Space),
    /// Rows of the space.
    Rows(Rows),
    /// The space ends; its rows match their sum.
    SpaceEnd(SpaceSummary),
}

/// Where in a file its reader is.
enum Place {
    Top,
    Group(GroupId),
    Space {
        group: GroupId,
        space: KeySpace,
        dropped: bool,
        count: Count,
        last: Option<Bytes>,
    },
    End,
}

/// Reads a file and checks what it reads. Only a file whose end was reached is whole.
pub struct FileReader<R> {
    input: R,
    sum: Sum,
    head: Head,
    place: Place,
}

impl<R> std::fmt::Debug for FileReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

fn damaged(what: impl Into<String>) -> BackupError {
    BackupError::Damaged(what.into())
}

impl<R: Read> FileReader<R> {
    /// Reads how a file that is not encrypted, or no longer is ([`super::open`]), introduces itself.
    pub fn new(input: R) -> Result<Self, BackupError> {
        let mut this = Self {
            input,
            sum: Sum::new(),
            head: Head::default(),
            place: Place::Top,
        };
        let mut magic = [0; MAGIC.len()];
        this.input.read_exact(&mut magic).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => BackupError::NotABackup,
            _ => BackupError::reading(error),
        })?;
        if &magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        let frame::Frame::Head(head) = this.frame()? else {
            return Err(damaged("it does not begin with its head"));
        };
        if head.format != FORMAT {
            return Err(BackupError::Newer(head.format));
        }
        this.head = head;
        Ok(this)
    }

    /// How the file introduces itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    fn frame(&mut self) -> Result<frame::Frame, BackupError> {
        let mut length = [0; 4];
        self.input.read_exact(&mut length).map_err(BackupError::reading)?;
        let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if size > MAX_FRAME {
            return Err(damaged(format!("a frame of {size} bytes")));
        }
        let mut body = vec![0; size];
        self.input.read_exact(&mut body).map_err(BackupError::reading)?;
        let body = Bytes::from(body);
        let frame = Frame::decode(body.clone()).ok().and_then(|frame| frame.frame);
        let frame = frame.ok_or_else(|| damaged("a frame cannot be decoded"))?;
        if let frame::Frame::Tail(tail) = &frame {
            if *tail != self.sum.tail() {
                return Err(damaged("its sum does not match its content"));
            }
        } else {
            self.sum.add(length, &body);
        }
        Ok(frame)
    }

    /// The next part; none at a good end.
    pub fn part(&mut self) -> Result<Option<Part>, BackupError> {
        if matches!(self.place, Place::End) {
            return Ok(None);
        }
        let frame = self.frame()?;
        let place = std::mem::replace(&mut self.place, Place::End);
        let (place, part) = match (place, frame) {
            (Place::Top | Place::Group(_), frame::Frame::Group(group)) => {
                (Place::Group(GroupId(group.group)), Some(Part::Group(group)))
            }
            (Place::Group(group), frame::Frame::Space(head)) => space(group, head)?,
            (
                Place::Space {
                    group,
                    space,
                    dropped,
                    mut count,
                    mut last,
                },
                frame::Frame::Rows(rows),
            ) => {
                add(&mut count, &mut last, &rows)?;
                let place = Place::Space {
                    group,
                    space,
                    dropped,
                    count,
                    last,
                };
                (place, Some(Part::Rows(rows)))
            }
            (
                Place::Space {
                    group,
                    space,
                    dropped,
                    count,
                    ..
                },
                frame::Frame::SpaceEnd(end),
            ) => {
                let summary = summary(space, dropped, &count, &end)?;
                (Place::Group(group), Some(Part::SpaceEnd(summary)))
            }
            (Place::Group(_), frame::Frame::Tail(_)) => {
                self.expect_end()?;
                (Place::End, None)
            }
            _ => return Err(damaged("its frames are in no sensible order")),
        };
        self.place = place;
        Ok(part)
    }

    fn expect_end(&mut self) -> Result<(), BackupError> {
        match self.input.read(&mut [0]).map_err(BackupError::reading)? {
            0 => Ok(()),
            _ => Err(damaged("something follows its end")),
        }
    }
}

fn space(group: GroupId, head: Space) -> Result<(Place, Option<Part>), BackupError> {
    let space = KeySpace::from_tenant(&head.tenant).map_err(|error| damaged(error.to_string()))?;
    if space.group() != group {
        return Err(damaged("a key space is in a group that is not its own"));
    }
    let place = Place::Space {
        group,
        space: space.clone(),
        dropped: head.fence == DROPPED,
        count: Count::new(),
        last: None,
    };
    Ok((place, Some(Part::Space(space, head))))
}

fn add(count: &mut Count, last: &mut Option<Bytes>, rows: &Rows) -> Result<(), BackupError> {
    for kv in &rows.keys {
        if last.as_ref().is_some_and(|last| *last >= kv.key) || kv.version <= 0 || kv.mod_revision <= 0 {
            return Err(damaged("a key is out of order, or was never written"));
        }
        *last = Some(kv.key.clone());
        count.key(kv);
    }
    count.leases += rows.leases.len() as u64;
    Ok(())
}

fn summary(space: KeySpace, dropped: bool, count: &Count, end: &SpaceEnd) -> Result<SpaceSummary, BackupError> {
    if *end != count.end() {
        return Err(damaged("the rows of a key space do not match their sum"));
    }
    Ok(SpaceSummary {
        space,
        dropped,
        keys: end.keys,
        leases: end.leases,
        bytes: end.bytes,
        hash: end.hash,
    })
}

/// Reads a file to its end: whether it is whole, and what it holds.
pub fn verify(input: impl Read) -> Result<Summary, BackupError> {
    let mut reader = FileReader::new(input)?;
    let mut summary = Summary {
        head: reader.head().clone(),
        ..Summary::default()
    };
    while let Some(part) = reader.part()? {
        match part {
            Part::Group(group) => summary.groups.push((GroupId(group.group), group.revision)),
            Part::SpaceEnd(space) => summary.spaces.push(space),
            Part::Space(..) | Part::Rows(_) => {}
        }
    }
    Ok(summary)
}
