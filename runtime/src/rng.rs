//! Randomness as an argument.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::rngs::{OsRng, StdRng};
use rand::{RngCore, SeedableRng, TryRngCore};
use std::sync::{Arc, Mutex, PoisonError};

/// A source of random bytes. All code outside this crate takes one.
pub trait Rng: Send + Sync + 'static {
    /// Fills `buffer`.
    fn fill(&self, buffer: &mut [u8]);

    /// A number in `[0, 1)`.
    fn unit(&self) -> f64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        // 53 bits, as many as an f64 holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
        let number = (u64::from_le_bytes(bytes) >> 11) as f64;
        number / 9_007_199_254_740_992.0
    }

    /// A version 4 UUID (RFC 9562).
    fn uuid(&self) -> String {
        let mut b = [0; 16];
        self.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// A secret of 256 bits as 43 characters that are safe in URLs and headers.
    fn token(&self) -> String {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

/// A source that is handed around.
pub type SharedRng = Arc<dyn Rng>;

/// The operating system's source, fit for secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRng;

impl SystemRng {
    /// Ready to be handed around.
    pub fn shared() -> SharedRng {
        Arc::new(Self)
    }
}

impl Rng for SystemRng {
    fn fill(&self, buffer: &mut [u8]) {
        // The kernel's source does not fail once the system has booted; going on with weak bytes would be worse.
        #[expect(clippy::expect_used, reason = "without random bytes no secret may be made")]
        OsRng
            .try_fill_bytes(buffer)
            .expect("the operating system gives random bytes");
    }
}

/// A repeatable source for tests and simulation.
#[derive(Debug)]
pub struct SeededRng(Mutex<StdRng>);

impl SeededRng {
    /// The same seed gives the same bytes.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Rng for SeededRng {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let rng = SeededRng::new(7);
        let uuid = rng.uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert_eq!(rng.token().len(), 43);
        for _ in 0..1000 {
            assert!((0.0..1.0).contains(&rng.unit()));
        }
        assert_eq!(SeededRng::new(7).uuid(), uuid);
        assert_ne!(SystemRng.token(), SystemRng.token());
    }
}
