//! Sealing of secrets before they enter the log: AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce.
//!
//! Form: one byte version (1), 12 bytes nonce, ciphertext with its 16-byte tag. The additional data binds a sealed value
//! to what it belongs to, so that it cannot be moved to another object. A random nonce is safe for 2^32 values per key.

use crate::rng::Rng;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;
/// Length of [`Sealer::id`].
pub const ID_LEN: usize = 16;

/// Why something could not be sealed or opened. Says nothing about the content.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file is missing, unreadable or not 32 bytes long.
    #[error("seal key {path}: {fault}")]
    Key {
        /// Path of the file.
        path: String,
        /// What is wrong.
        fault: String,
    },
    /// The value was sealed by another key, for another purpose, or is damaged.
    #[error("a sealed value cannot be opened: other key, other purpose, or damaged")]
    Open,
    /// The cipher refused the input (longer than 64 GiB).
    #[error("a value cannot be sealed")]
    Seal,
}

impl SealError {
    /// Whether a later try may succeed.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Key { .. } | Self::Open | Self::Seal => false,
        }
    }
}

/// Seals and opens with one key. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    key: Arc<LessSafeKey>,
    id: [u8; ID_LEN],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// With the key in `bytes`.
    pub fn from_key(bytes: &[u8; KEY_LEN]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| SealError::Seal)?;
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"hanse seal key id");
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&tag.as_ref()[..ID_LEN]);
        Ok(Self {
            key: Arc::new(LessSafeKey::new(key)),
            id,
        })
    }

    /// Tells this key from others without saying anything about it: a truncated HMAC of a fixed text.
    pub const fn id(&self) -> [u8; ID_LEN] {
        self.id
    }

    /// With the 32 raw bytes in the file at `path`.
    pub fn from_key_file(path: &Path) -> Result<Self, SealError> {
        let fault = |fault: String| SealError::Key {
            path: path.display().to_string(),
            fault,
        };
        let bytes = Zeroizing::new(std::fs::read(path).map_err(|e| fault(e.to_string()))?);
        let key: &[u8; KEY_LEN] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| fault(format!("must hold {KEY_LEN} bytes, holds {}", bytes.len())))?;
        Self::from_key(key)
    }

    /// A new random key, to be kept in a file of mode 0600.
    pub fn generate(rng: &dyn Rng) -> Zeroizing<[u8; KEY_LEN]> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        rng.fill(key.as_mut());
        key
    }

    /// Seals `plain` for the purpose `aad`.
    pub fn seal(&self, rng: &dyn Rng, plain: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill(&mut nonce);
        let mut body = plain.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
            .map_err(|_| SealError::Seal)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Opens what [`Sealer::seal`] made with the same key and purpose.
    pub fn open(&self, sealed: &[u8], aad: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (&version, rest) = sealed.split_first().ok_or(SealError::Open)?;
        if version != VERSION {
            return Err(SealError::Open);
        }
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Open)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Open)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(aad), &mut body)
            .map_err(|_| SealError::Open)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SeededRng;

    #[test]
    fn opens_only_with_the_same_key_and_purpose_and_undamaged() {
        let rng = SeededRng::new(3);
        let sealer = Sealer::from_key(&Sealer::generate(&rng)).unwrap();
        let sealed = sealer.seal(&rng, b"secret", b"tenant-1").unwrap();
        assert_eq!(sealer.open(&sealed, b"tenant-1").unwrap().as_slice(), b"secret");
        assert!(sealer.open(&sealed, b"tenant-2").is_err());
        let other = Sealer::from_key(&Sealer::generate(&rng)).unwrap();
        assert!(other.open(&sealed, b"tenant-1").is_err());
        assert_ne!(other.id(), sealer.id());
        for i in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[i] ^= 1;
            assert!(sealer.open(&damaged, b"tenant-1").is_err(), "byte {i}");
            assert!(sealer.open(&sealed[..i], b"tenant-1").is_err(), "cut at {i}");
        }
    }

    #[test]
    fn key_files_must_have_the_right_length() {
        let path = std::env::temp_dir().join(format!("hanse-seal-{}", std::process::id()));
        std::fs::write(&path, [0; 31]).unwrap();
        let fault = Sealer::from_key_file(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(fault.contains("must hold 32 bytes, holds 31"), "{fault}");
    }
}
