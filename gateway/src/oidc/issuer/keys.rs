//! Keys that sign ID tokens: RSA, as every client understands it. One for each period, by whose number it is named, so
//! that servers agree on them without a word: each makes what it misses, and the first one is that of all. The key of the
//! next period is told a whole period before it signs, and that of the last one a whole period after.

use super::super::browser::sealing_failed;
use super::super::{Desk, Oidc};
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::keys::{new_meta, stored_json};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_api::Timestamp;
use hanse_api::kinds::OIDC_KEYS;
use hanse_api::resources::{OidcKey, OidcKeySpec};
use hanse_api::status::{Reason, Status};
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::{ObjectError, ObjectKey, Op};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

/// How long a key signs, in milliseconds: 30 days.
const PERIOD: i64 = 30 * 24 * 3600 * 1000;
/// Tries to make a key that another server makes as well.
const TRIES: usize = 5;

const fn period(now: Timestamp) -> i64 {
    now.as_millis().div_euclid(PERIOD)
}

fn key_of(period: i64) -> ObjectKey {
    ObjectKey::new(&OIDC_KEYS, "", format!("rs256-{period:06}"))
}

fn purpose(name: &str) -> Vec<u8> {
    format!("hanse oidc key {name}").into_bytes()
}

fn unusable(name: &str) -> Box<Status> {
    tracing::error!(
        name,
        "a key for ID tokens cannot be opened: it was sealed by another key, or is damaged"
    );
    let why = format!("the key {name:?} cannot be opened; an administrator can delete it among oidckeys");
    Box::new(Status::new(Reason::InternalError, why))
}

async fn known(backend: &Backend, period: i64) -> Result<Option<OidcKey>, Box<Status>> {
    let key = key_of(period);
    let Some(stored) = backend.objects.get_local(&key).await.map_err(|e| failed(&e))? else {
        return Ok(None);
    };
    serde_json::from_slice(&stored.value)
        .map(Some)
        .map_err(|_| unusable(&key.name))
}

/// The key of a period, which is made if nobody has made it yet.
async fn made(backend: &Backend, oidc: &Oidc, wanted: i64) -> Result<OidcKey, Box<Status>> {
    if let Some(key) = known(backend, wanted).await? {
        return Ok(key);
    }
    // Making one costs much: one at a time, and whoever waited finds it made.
    let _turn = oidc.making.lock().await;
    let key = key_of(wanted);
    for _ in 0..TRIES {
        if let Some(stored) = backend.objects.get(&key).await.map_err(|e| failed(&e))? {
            return serde_json::from_slice(&stored.value).map_err(|_| unusable(&key.name));
        }
        let fresh = generated(backend, oidc, &key.name).await?;
        let mut ops = vec![Op::Create {
            key: key.clone(),
            value: stored_json(&fresh)?,
        }];
        // Nobody takes what it signed any more by then.
        let old = key_of(wanted - 3);
        if let Some(stored) = backend.objects.get(&old).await.map_err(|e| failed(&e))? {
            ops.push(Op::Delete {
                key: old,
                expected: stored.revision,
            });
        }
        match backend.objects.commit(ops).await {
            Ok(_) => {
                tracing::info!(kid = fresh.spec.kid, name = key.name, "a key for ID tokens was made");
                return Ok(fresh);
            }
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    let why = "too much changed at once; try again";
    Err(Box::new(Status::new(Reason::ServiceUnavailable, why).retry_after(1)))
}

async fn generated(backend: &Backend, oidc: &Oidc, name: &str) -> Result<OidcKey, Box<Status>> {
    let pair = tokio::task::spawn_blocking(|| KeyPair::generate(KeySize::Rsa2048))
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or_else(sealing_failed)?;
    let private = pair.as_der().map_err(|_| sealing_failed())?;
    let private: &Pkcs8V1Der<'_> = &private;
    let sealed = oidc
        .sealer
        .seal(backend.rng.as_ref(), private.as_ref(), &purpose(name))
        .map_err(|_| sealing_failed())?;
    let public = pair.public_key();
    let number = |n: &[u8]| URL_SAFE_NO_PAD.encode(n);
    let n = number(public.modulus().big_endian_without_leading_zero());
    Ok(OidcKey {
        api_version: OIDC_KEYS.api_version(),
        kind: OIDC_KEYS.kind.into(),
        metadata: new_meta(backend, name),
        spec: OidcKeySpec {
            kid: sha256_hex(n.as_bytes()).chars().take(16).collect(),
            n,
            e: number(public.exponent().big_endian_without_leading_zero()),
            sealed: URL_SAFE_NO_PAD.encode(sealed),
        },
        status: (),
    })
}

impl Desk<'_> {
    /// The public halves (RFC 7517).
    pub(super) async fn jwks(&self) -> Result<Value, Box<Status>> {
        let now = period(self.backend.clock.wall());
        let mut keys = Vec::new();
        keys.extend(known(self.backend, now - 1).await?);
        keys.push(made(self.backend, self.oidc, now).await?);
        match made(self.backend, self.oidc, now + 1).await {
            Ok(next) => keys.push(next),
            // It is not needed yet: while the store cannot be written to, tokens are checked all the same.
            Err(status) => tracing::warn!(why = status.message, "the next key for ID tokens cannot be made now"),
        }
        let told = |key: &OidcKey| {
            let OidcKeySpec { kid, n, e, .. } = &key.spec;
            json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e })
        };
        Ok(json!({ "keys": keys.iter().map(told).collect::<Vec<_>>() }))
    }

    /// Claims as a signed token (RFC 7515, compact form).
    pub(super) async fn signed(&self, claims: &Map<String, Value>) -> Result<String, Box<Status>> {
        let key = made(self.backend, self.oidc, period(self.backend.clock.wall())).await?;
        let name = &key.metadata.name;
        let sealed = URL_SAFE_NO_PAD.decode(&key.spec.sealed).map_err(|_| unusable(name))?;
        let private = self.oidc.sealer.open(&sealed, &purpose(name));
        let private = Zeroizing::new(private.map_err(|_| unusable(name))?);
        let pair = KeyPair::from_pkcs8(&private).map_err(|_| unusable(name))?;
        let header = json!({ "alg": "RS256", "typ": "JWT", "kid": key.spec.kid });
        let part = |text: String| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", part(header.to_string()), part(json!(claims).to_string()));
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            message.as_bytes(),
            &mut signature,
        )
        .map_err(|_| unusable(name))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_period_has_its_key_and_its_name_sorts() {
        let at = |days: i64| period(Timestamp::from_millis(days * 24 * 3600 * 1000));
        assert_eq!((at(0), at(29), at(30), at(59), at(60)), (0, 0, 1, 1, 2));
        assert_eq!(key_of(683).name, "rs256-000683");
        assert!(key_of(999).name < key_of(1000).name);
    }
}
