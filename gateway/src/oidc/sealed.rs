//! What a login hands to the browser and the client and wants back: sealed, so that nobody reads or makes it, with an end.
//! So any server of any region goes on with what another one began, and beginning costs no place anywhere.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_api::Timestamp;
use hanse_runtime::rng::Rng;
use hanse_runtime::seal::Sealer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest text that is opened.
const MAX_TEXT: usize = 4096;

/// Something that is handed out sealed. What is sealed as one kind is never taken as another.
pub(super) trait Sealed: Serialize + DeserializeOwned {
    /// Names the kind.
    const PURPOSE: &'static [u8];
    /// How long it holds.
    const LIFE: Duration;

    /// When it ends.
    fn expires(&self) -> Timestamp;
}

/// A login that was begun. It stays with the browser, as a cookie.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Attempt {
    /// Its own id: it is used up once.
    pub(super) id: String,
    /// The provider that was chosen; a callback of another is refused.
    pub(super) provider: String,
    /// `state` of the request.
    pub(super) state: String,
    /// `nonce` of the request.
    pub(super) nonce: String,
    /// Verifier of PKCE.
    pub(super) verifier: String,
    /// What comes after it.
    pub(super) then: Then,
    /// When it ends.
    pub(super) expires: Timestamp,
}

/// What comes after a login in the browser.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Then {
    /// Nothing: the person sees who he is.
    Nothing,
    /// The `vcluster` CLI waits on its port for an access key.
    VclusterCli,
    /// A client waits for a code, on a port of the person's machine or on his keyboard; it alone can make a key of it.
    Code {
        /// SHA-256 of the client's verifier, in base64url.
        challenge: String,
        /// The client's port on the loopback address.
        port: Option<u16>,
        /// What the client recognises its own request by.
        state: String,
    },
    /// A device waits for the person's word.
    Device {
        /// The short code that it shows.
        code: String,
    },
    /// A client of ours waits to be told who the person is.
    Client(Box<Ask>),
}

/// What a client of ours asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// Its id.
    pub(super) client: String,
    /// Where the person is led back to.
    pub(super) redirect: String,
    /// What the client may know.
    pub(super) scopes: Vec<String>,
    /// What it recognises its own request by.
    pub(super) state: String,
    /// What goes into its ID token.
    pub(super) nonce: String,
    /// SHA-256 of its verifier, in base64url.
    pub(super) challenge: String,
    /// Whether the person must log in anew, whatever session he has at his provider.
    pub(super) fresh: bool,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Ask {
    const PURPOSE: &'static [u8] = b"hanse oidc client ask";
    const LIFE: Duration = Duration::from_secs(600);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// The code that a client exchanges for tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Code {
    /// Its own id: it is used up once.
    pub(super) id: String,
    /// What was asked for; only who asked may use it.
    pub(super) ask: Ask,
    /// Name of the user.
    pub(super) user: String,
    /// Uid of the user.
    pub(super) uid: String,
    /// When he logged in, if he was made to.
    pub(super) auth_time: Option<Timestamp>,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Code {
    const PURPOSE: &'static [u8] = b"hanse oidc code";
    const LIFE: Duration = Duration::from_secs(60);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// A refresh token.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Renewal {
    /// Name of the login that it renews.
    pub(super) grant: String,
    /// It is good only until the next one is given.
    pub(super) turn: u64,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Renewal {
    const PURPOSE: &'static [u8] = b"hanse oidc refresh token";
    /// The login itself says how long.
    const LIFE: Duration = Duration::ZERO;

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// An access token: good for the user info of one login, and for nothing else.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pass {
    /// Name of the login.
    pub(super) grant: String,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Pass {
    const PURPOSE: &'static [u8] = b"hanse oidc access token";
    const LIFE: Duration = Duration::from_secs(600);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

impl Sealed for Attempt {
    const PURPOSE: &'static [u8] = b"hanse oidc attempt";
    const LIFE: Duration = Duration::from_secs(600);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// The right to make one key for a user, for the client with the verifier.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Grant {
    /// Its own id: it is used up once.
    pub(super) id: String,
    /// Name of the user.
    pub(super) user: String,
    /// Uid of the user.
    pub(super) uid: String,
    /// SHA-256 of the client's verifier, in base64url.
    pub(super) challenge: String,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Grant {
    const PURPOSE: &'static [u8] = b"hanse login grant";
    const LIFE: Duration = Duration::from_secs(300);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// A device that waits. Only it has this, so only it gets the key.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Device {
    /// The short code that it shows.
    pub(super) code: String,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Device {
    const PURPOSE: &'static [u8] = b"hanse login device";
    const LIFE: Duration = Duration::from_secs(600);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// A person who was asked whether the device with this code may log in as him.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Question {
    /// Its own id: it is answered once.
    pub(super) id: String,
    /// Name of the user.
    pub(super) user: String,
    /// Uid of the user.
    pub(super) uid: String,
    /// The short code that the device shows.
    pub(super) code: String,
    /// When it ends.
    pub(super) expires: Timestamp,
}

impl Sealed for Question {
    const PURPOSE: &'static [u8] = b"hanse login question";
    const LIFE: Duration = Duration::from_secs(300);

    fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// Opens a sealed text; nothing for one that is not ours, not of this kind, or over.
pub(super) fn open<T: Sealed>(sealer: &Sealer, now: Timestamp, text: &str) -> Option<T> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let plain = sealer.open(&bytes, T::PURPOSE).ok()?;
    let value: T = serde_json::from_slice(&plain).ok()?;
    (now < value.expires()).then_some(value)
}

/// Seals a value; nothing when the cipher fails.
pub(super) fn seal<T: Sealed>(sealer: &Sealer, rng: &dyn Rng, value: &T) -> Option<String> {
    let plain = zeroize::Zeroizing::new(serde_json::to_vec(value).ok()?);
    let sealed = sealer.seal(rng, &plain, T::PURPOSE).ok()?;
    Some(URL_SAFE_NO_PAD.encode(sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::rng::SeededRng;

    #[derive(Serialize, Deserialize)]
    struct Other {
        expires: Timestamp,
    }

    impl Sealed for Other {
        const PURPOSE: &'static [u8] = b"other";
        const LIFE: Duration = Duration::from_secs(1);

        fn expires(&self) -> Timestamp {
            self.expires
        }
    }

    #[test]
    fn what_is_sealed_opens_in_time_as_what_it_is_and_unchanged() {
        let rng = SeededRng::new(7);
        let sealer = Sealer::from_key(&Sealer::generate(&rng)).unwrap();
        let (now, end) = (Timestamp::from_millis(1_000), Timestamp::from_millis(2_000));
        let attempt = Attempt {
            id: "1".into(),
            provider: "corp".into(),
            state: "s".into(),
            nonce: "n".into(),
            verifier: "v".into(),
            then: Then::VclusterCli,
            expires: end,
        };
        let text = seal(&sealer, &rng, &attempt).unwrap();
        let opened: Attempt = open(&sealer, now, &text).unwrap();
        assert_eq!((opened.id.as_str(), opened.then), ("1", Then::VclusterCli));
        assert!(open::<Attempt>(&sealer, end, &text).is_none(), "it is over");
        assert!(open::<Other>(&sealer, now, &text).is_none(), "it is something else");
        let other = Sealer::from_key(&Sealer::generate(&rng)).unwrap();
        assert!(open::<Attempt>(&other, now, &text).is_none());
        for i in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[i] = if changed[i] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let same = URL_SAFE_NO_PAD.decode(&changed).ok() == URL_SAFE_NO_PAD.decode(&text).ok();
            assert!(
                same || open::<Attempt>(&sealer, now, &changed).is_none(),
                "character {i}"
            );
        }
        assert!(open::<Attempt>(&sealer, now, &"A".repeat(MAX_TEXT + 1)).is_none());
    }
}
