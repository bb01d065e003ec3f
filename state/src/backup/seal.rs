//! A backup file under a passphrase.
//!
//! The key is derived by PBKDF2-HMAC-SHA-512 (RFC 8018; the count of rounds is in the file). The content is cut into segments
//! of 64 KiB, each sealed by AES-256-GCM under a nonce of its number and whether it is the last one (the STREAM construction
//! of Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015): segments cannot be changed, left out, moved or cut off. The
//! additional data of each is the file's first part, so that neither salt nor rounds can be exchanged. A file's key is its
//! own by the random salt, so numbers serve as nonces.

use super::BackupError;
use super::file::MAGIC;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;
use hanse_runtime::rng::Rng;
use std::fmt;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// First bytes of an encrypted file.
pub const SEALED_MAGIC: &[u8; 8] = b"hansebkx";
/// Shortest passphrase, in characters, that a new file is sealed with.
pub const PASSPHRASE_MIN: usize = 12;
/// Rounds of the derivation for new files.
const ROUNDS: u32 = 300_000;
/// Most rounds that a file may ask for: a forged one must not keep the reader busy for ever.
const ROUNDS_MAX: u32 = 20_000_000;
/// Plain bytes in a segment.
const SEGMENT: usize = 64 * 1024;
const TAG: usize = 16;
const SALT: usize = 16;
/// Part of the derivation that stands in the file and tells a wrong passphrase from damage.
const CHECK: usize = 16;
/// Magic, version, rounds, salt, check.
const HEADER: usize = SEALED_MAGIC.len() + 1 + 4 + SALT + CHECK;
const VERSION: u8 = 1;

/// What a backup is encrypted with.
pub struct Passphrase(Zeroizing<String>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Passphrase {
    /// Of a text, without the line's end.
    pub fn new(text: Zeroizing<String>) -> Self {
        let bare = text.trim_end_matches(['\r', '\n']).to_owned();
        Self(Zeroizing::new(bare))
    }

    /// The key and what stands in the file of it.
    fn derive(&self, salt: &[u8], rounds: NonZeroU32) -> Result<(LessSafeKey, [u8; CHECK]), BackupError> {
        let mut out = Zeroizing::new([0; 64]);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA512,
            rounds,
            salt,
            self.0.as_bytes(),
            out.as_mut(),
        );
        let key = UnboundKey::new(&AES_256_GCM, &out[..32]);
        let key = key.map_err(|_| BackupError::Io(io::Error::other("no key can be made")))?;
        let mut check = [0; CHECK];
        check.copy_from_slice(&out[32..32 + CHECK]);
        Ok((LessSafeKey::new(key), check))
    }
}

fn nonce(number: u32, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[7..11].copy_from_slice(&number.to_be_bytes());
    bytes[11] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

/// Seals what is written to it. Worth nothing before [`SealedWriter::finish`].
pub struct SealedWriter<W> {
    inner: W,
    key: LessSafeKey,
    header: Vec<u8>,
    segment: Vec<u8>,
    number: u32,
}

impl<W> fmt::Debug for SealedWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedWriter(..)")
    }
}

impl<W: Write> SealedWriter<W> {
    /// Begins a file in `inner`.
    pub fn new(mut inner: W, passphrase: &Passphrase, rng: &dyn Rng) -> Result<Self, BackupError> {
        if passphrase.0.chars().count() < PASSPHRASE_MIN {
            return Err(BackupError::ShortPassphrase);
        }
        let mut salt = [0; SALT];
        rng.fill(&mut salt);
        let rounds = NonZeroU32::new(ROUNDS).unwrap_or(NonZeroU32::MIN);
        let (key, check) = passphrase.derive(&salt, rounds)?;
        let mut header = SEALED_MAGIC.to_vec();
        header.push(VERSION);
        header.extend_from_slice(&rounds.get().to_be_bytes());
        header.extend_from_slice(&salt);
        header.extend_from_slice(&check);
        inner.write_all(&header).map_err(BackupError::Io)?;
        Ok(Self {
            inner,
            key,
            header,
            segment: Vec::with_capacity(SEGMENT + TAG),
            number: 0,
        })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let sealed =
            self.key
                .seal_in_place_append_tag(nonce(self.number, last), Aad::from(&self.header), &mut self.segment);
        sealed.map_err(|_| io::Error::other("a segment cannot be sealed"))?;
        self.inner.write_all(&self.segment)?;
        self.segment.clear();
        let next = self.number.checked_add(1);
        self.number = next.ok_or_else(|| io::Error::other("the backup has too many segments"))?;
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for SealedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full segment waits for what follows: only then it is known not to be the last.
        if self.segment.len() == SEGMENT && !bytes.is_empty() {
            self.seal(false)?;
        }
        let taken = bytes.len().min(SEGMENT - self.segment.len());
        self.segment.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct SealedReader<R> {
    inner: R,
    key: LessSafeKey,
    header: Vec<u8>,
    /// Sealed bytes that were read ahead: one segment and one byte more, which tells whether it is the last.
    ahead: Vec<u8>,
    plain: Vec<u8>,
    at: usize,
    number: u32,
    ended: bool,
}

impl<R: Read> SealedReader<R> {
    fn next(&mut self) -> io::Result<()> {
        let wanted = (SEGMENT + TAG + 1).saturating_sub(self.ahead.len());
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        self.inner.by_ref().take(wanted).read_to_end(&mut self.ahead)?;
        let last = self.ahead.len() <= SEGMENT + TAG;
        let rest = if last {
            Vec::new()
        } else {
            self.ahead.split_off(SEGMENT + TAG)
        };
        let mut segment = std::mem::replace(&mut self.ahead, rest);
        let opened = self
            .key
            .open_in_place(nonce(self.number, last), Aad::from(&self.header), &mut segment);
        let Ok(length) = opened.map(|plain| plain.len()) else {
            return Err(self.fault(last));
        };
        segment.truncate(length);
        self.number = self.number.saturating_add(1);
        (self.plain, self.at, self.ended) = (segment, 0, last);
        Ok(())
    }

    fn fault(&self, last: bool) -> io::Error {
        let number = self.number;
        let text = if last {
            format!("its last segment ({number}) cannot be decrypted: it is cut short or was changed")
        } else {
            format!("segment {number} cannot be decrypted: it was changed")
        };
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl<R: Read> Read for SealedReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.plain.len() {
            if self.ended || out.is_empty() {
                return Ok(0);
            }
            self.next()?;
        }
        let count = out.len().min(self.plain.len() - self.at);
        out[..count].copy_from_slice(&self.plain[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Whether a file with these first bytes is encrypted.
pub fn is_sealed(start: [u8; 8]) -> bool {
    &start == SEALED_MAGIC
}

/// The plain content of a file, encrypted or not. A passphrase for a file that is not encrypted is not looked at.
pub fn open<'a>(mut input: impl Read + 'a, passphrase: Option<&Passphrase>) -> Result<Box<dyn Read + 'a>, BackupError> {
    let mut header = vec![0; MAGIC.len()];
    input.read_exact(&mut header).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::NotABackup,
        _ => BackupError::reading(error),
    })?;
    if header == MAGIC {
        return Ok(Box::new(io::Cursor::new(header).chain(input)));
    }
    if header != SEALED_MAGIC {
        return Err(BackupError::NotABackup);
    }
    header.resize(HEADER, 0);
    input
        .read_exact(&mut header[SEALED_MAGIC.len()..])
        .map_err(BackupError::reading)?;
    let (version, rest) = (header[8], &header[9..]);
    if version != VERSION {
        return Err(BackupError::Newer(version.into()));
    }
    let (rounds, rest) = rest.split_at(4);
    let (salt, check) = rest.split_at(SALT);
    let rounds = rounds.try_into().map_or(0, u32::from_be_bytes);
    let rounds = NonZeroU32::new(rounds).filter(|rounds| rounds.get() <= ROUNDS_MAX);
    let rounds = rounds.ok_or_else(|| BackupError::Damaged("its first part makes no sense".to_owned()))?;
    let passphrase = passphrase.ok_or(BackupError::NeedsPassphrase)?;
    let (key, expected) = passphrase.derive(salt, rounds)?;
    if aws_lc_rs::constant_time::verify_slices_are_equal(check, &expected).is_err() {
        return Err(BackupError::WrongPassphrase);
    }
    Ok(Box::new(SealedReader {
        inner: input,
        key,
        header,
        ahead: Vec::new(),
        plain: Vec::new(),
        at: 0,
        number: 0,
        ended: false,
    }))
}
