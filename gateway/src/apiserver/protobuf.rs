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

    /// A field as senders write it.
    fn written(number: u64, value: &Result<Vec<u8>, u64>) -> Vec<u8> {
        let varint = |mut n: u64| {
            let mut out = Vec::new();
            while n > 0x7f {
                out.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
                n >>= 7;
            }
            out.push(u8::try_from(n).unwrap());
            out
        };
        match value {
            Ok(bytes) => [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.clone()].concat(),
            Err(n) => [varint(number << 3), varint(*n)].concat(),
        }
    }

    proptest! {
        #![proptest_config(crate::fuzzing::cases(300))]

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (object(&bytes), text(&bytes, 1));
            let _ = object(&[MAGIC, &bytes].concat());
        }

        #[test]
        fn the_last_of_a_field_counts_and_half_a_message_is_none(
            fields in prop::collection::vec((1..6_u64, prop::result::maybe_err(
                prop::collection::vec(any::<u8>(), 0..200), any::<u64>())), 0..6),
            wanted in 1..6_u64,
        ) {
            let bytes: Vec<u8> = fields.iter().flat_map(|(number, value)| written(*number, value)).collect();
            let last = fields.iter().rev().find_map(|(n, v)| v.as_ref().ok().filter(|_| *n == wanted));
            prop_assert_eq!(message(&bytes, wanted), Some(last.map_or(&[][..], Vec::as_slice)));
            let ends: Vec<usize> = fields.iter().scan(0, |at, (number, value)| {
                *at += written(*number, value).len();
                Some(*at)
            }).collect();
            for cut in 1..bytes.len() {
                prop_assert_eq!(message(&bytes[..cut], wanted).is_some(), ends.contains(&cut), "{}", cut);
            }
        }
    }
}
