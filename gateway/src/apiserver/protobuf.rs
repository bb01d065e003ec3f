//! Reads the few protobuf bodies that kubectl sends whatever a server says it takes: reviews of the caller himself.
//!
//! A body is the four bytes `k8s\0` and an envelope (`runtime.Unknown`) whose second field is the object's message. Only
//! texts and messages inside messages occur in what is read here, so a field walker is all that is needed.

/// What every such body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Media type.
pub(crate) const MEDIA: &str = "application/vnd.kubernetes.protobuf";

/// The message of the object in a body.
pub(crate) fn object(body: &[u8]) -> Option<&[u8]> {
    message(body.strip_prefix(MAGIC)?, 2)
}

/// The bytes of the field `number` of a message; the last one counts. Absent and empty are the same.
pub(crate) fn message(bytes: &[u8], number: u64) -> Option<&[u8]> {
    let mut found: &[u8] = &[];
    let mut rest = bytes;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let value: &[u8] = match tag & 7 {
            0 => {
                varint(&mut rest)?;
                &[]
            }
            1 => take(&mut rest, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                take(&mut rest, length)?
            }
            5 => take(&mut rest, 4)?,
            _ => return None,
        };
        if tag >> 3 == number && tag & 7 == 2 {
            found = value;
        }
    }
    Some(found)
}

/// The text of the field `number`.
pub(crate) fn text(bytes: &[u8], number: u64) -> Option<&str> {
    std::str::from_utf8(message(bytes, number)?).ok()
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_found() {
        // field 1: "ab", field 2: message { field 1: "x" }, field 3: varint 300
        let bytes = [0x0a, 2, b'a', b'b', 0x12, 3, 0x0a, 1, b'x', 0x18, 0xac, 2];
        assert_eq!(text(&bytes, 1), Some("ab"));
        assert_eq!(text(message(&bytes, 2).unwrap(), 1), Some("x"));
        assert_eq!(message(&bytes, 9), Some(&[][..]));
        let body = [MAGIC, &bytes].concat();
        assert_eq!(object(&body).unwrap(), &bytes[6..9]);
        assert_eq!(object(b"{}"), None);
        assert_eq!(message(&[0x0a, 200], 1), None);
        assert_eq!(message(&[0x0b], 1), None);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (object(&bytes), text(&bytes, 1));
        }
    }
}
