//! One space of a file, as a file of its own: so that whoever restores one tenant hands over nothing of others.

use super::file::{FileReader, Framer, Part};
use super::take::Emit;
use super::{BackupError, Head};
use crate::keys::KeySpace;
use crate::pb::backup::{SpaceEnd, frame::Frame};
use std::io::Read;

/// Hands out the bytes of a file with `space` alone, out of one that may hold others. An error may come after all of them: the
/// rest of the input is read as well, as only a file whose end was seen is whole.
pub fn extract(input: impl Read, space: &KeySpace, emit: &mut Emit<'_>) -> Result<(), BackupError> {
    let mut reader = FileReader::new(input)?;
    let mut out = Framer::new();
    let head = Head {
        tenant: space.tenant().to_owned(),
        ..reader.head().clone()
    };
    emit(out.frame(Frame::Head(head)))?;
    let (mut inside, mut found, mut holds) = (false, false, Vec::new());
    while let Some(part) = reader.part()? {
        let frame = match part {
            Part::Group(group) => (group.group == space.group().0).then_some(Frame::Group(group)),
            Part::Space(name, head) => {
                inside = name == *space;
                found |= inside;
                if !name.tenant().is_empty() {
                    holds.push(name.tenant().to_owned());
                }
                if inside && head.restore_id != 0 {
                    return Err(BackupError::Part(head.tenant));
                }
                inside.then_some(Frame::Space(head))
            }
            Part::Rows(rows) => inside.then_some(Frame::Rows(rows)),
            Part::SpaceEnd(end) => inside.then_some(Frame::SpaceEnd(SpaceEnd {
                keys: end.keys,
                leases: end.leases,
                bytes: end.bytes,
                hash: end.hash,
            })),
        };
        if let Some(frame) = frame {
            emit(out.frame(frame))?;
        }
    }
    if !found {
        let wanted = space.tenant().to_owned();
        return Err(BackupError::NotThere { wanted, holds });
    }
    emit(out.tail())
}
