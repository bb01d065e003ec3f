//! Gives agents their certificates in exchange for one-time tokens.
//!
//! A token is `<id>.<secret>`. The council keeps the id, the cluster, the hash of the secret and when it expires. The
//! names in the certificate come from the token's cluster alone; whatever the request asks for is ignored. A token
//! works once, but the same key may ask again, because an answer can get lost.

use std::time::Duration;

use hanse_api::Timestamp;
use hanse_api::kinds::ENROLMENT_TOKENS;
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::name::check_subdomain;
use hanse_api::resources::{EnrolmentToken, EnrolmentTokenSpec};
use hanse_runtime::pki::{Ca, LeafSpec, csr_key_sha256, sha256_hex};
use hanse_runtime::rng::Rng;
use hanse_state::objects::{ObjectError, Objects, Op};
use hanse_tunnel::Enrolled;

use crate::address::Address;
use crate::error::{EnrolError, StepError};
use crate::reconciler::encode;

/// Lifetime of an agent's certificate, in days.
const CERTIFICATE_DAYS: u32 = 365;
/// Longest token and longest request, in bytes.
const INPUT_MAX: usize = 64 << 10;
/// Tries when two requests use the same token at once.
const TRIES: usize = 3;

/// URI name of the agent of `cluster` in its certificate.
pub fn agent_uri(cluster: &str) -> String {
    format!("hanse://agent/{cluster}")
}

/// Creates a token for the agent of `cluster` that is good for `lifetime`. The secret in the answer is stored nowhere.
pub async fn issue(
    objects: &Objects,
    rng: &dyn Rng,
    cluster: &str,
    lifetime: Duration,
    now: Timestamp,
) -> Result<String, EnrolError> {
    let (id, secret) = (rng.uuid(), rng.token());
    let spec = EnrolmentTokenSpec {
        cluster: cluster.to_owned(),
        secret_sha256: sha256_hex(secret.as_bytes()),
        expires: now.plus(lifetime),
        used_by_key_sha256: None,
    };
    let value = encode(&token_object(&id, spec, rng.uuid(), now)).map_err(json)?;
    let key = Address::global(&id).key(ENROLMENT_TOKENS);
    objects
        .commit(vec![Op::Create { key, value }])
        .await
        .map_err(EnrolError::Council)?;
    Ok(format!("{id}.{secret}"))
}

/// The object of a token.
pub(crate) fn token_object(id: &str, spec: EnrolmentTokenSpec, uid: String, now: Timestamp) -> EnrolmentToken {
    Object {
        api_version: ENROLMENT_TOKENS.api_version(),
        kind: ENROLMENT_TOKENS.kind.to_owned(),
        metadata: ObjectMeta {
            name: id.to_owned(),
            uid,
            generation: 1,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        spec,
        status: (),
    }
}

/// A certificate for the key in `csr_pem`, with the name of the cluster that `token` is for.
pub async fn enrol(
    objects: &Objects,
    ca: &Ca,
    token: &str,
    csr_pem: &str,
    now: Timestamp,
) -> Result<Enrolled, EnrolError> {
    if token.len() > INPUT_MAX || csr_pem.len() > INPUT_MAX {
        return Err(EnrolError::BadToken);
    }
    let (id, secret) = token.trim().split_once('.').ok_or(EnrolError::BadToken)?;
    check_subdomain(id).map_err(|_| EnrolError::BadToken)?;
    let key = Address::global(id).key(ENROLMENT_TOKENS);
    for _ in 0..TRIES {
        let stored = objects
            .get(&key)
            .await
            .map_err(EnrolError::Council)?
            .ok_or(EnrolError::BadToken)?;
        let mut object: EnrolmentToken = serde_json::from_slice(&stored.value).map_err(EnrolError::Json)?;
        let enrolled = examine(&object.spec, ca, secret, csr_pem, now)?;
        if object.spec.used_by_key_sha256.is_some() {
            return Ok(enrolled);
        }
        object.spec.used_by_key_sha256 = Some(csr_key_sha256(csr_pem).map_err(EnrolError::Request)?);
        let value = encode(&object).map_err(json)?;
        match objects
            .commit(vec![Op::Update {
                key: key.clone(),
                value,
                expected: stored.revision,
            }])
            .await
        {
            Ok(_) => return Ok(enrolled),
            // Somebody used it at the same moment: look who.
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(EnrolError::Council(error)),
        }
    }
    Err(EnrolError::BadToken)
}

/// Checks the token and signs the request; changes nothing.
fn examine(
    spec: &EnrolmentTokenSpec,
    ca: &Ca,
    secret: &str,
    csr_pem: &str,
    now: Timestamp,
) -> Result<Enrolled, EnrolError> {
    // Hashes are compared, so the time that it takes says nothing about the secret.
    if sha256_hex(secret.as_bytes()) != spec.secret_sha256 {
        return Err(EnrolError::BadToken);
    }
    let cluster = &spec.cluster;
    if now >= spec.expires {
        return Err(EnrolError::Expired {
            cluster: cluster.clone(),
            expires: spec.expires,
        });
    }
    let key = csr_key_sha256(csr_pem).map_err(EnrolError::Request)?;
    if spec.used_by_key_sha256.as_ref().is_some_and(|used| *used != key) {
        return Err(EnrolError::Used {
            cluster: cluster.clone(),
        });
    }
    let leaf = LeafSpec {
        common_name: cluster.clone(),
        uris: vec![agent_uri(cluster)],
        client: true,
        days: CERTIFICATE_DAYS,
        ..LeafSpec::default()
    };
    let cert_pem = ca.sign_csr(csr_pem, &leaf, now).map_err(EnrolError::Request)?;
    Ok(Enrolled {
        cert_pem,
        ca_pem: ca.cert_pem().to_owned(),
        cluster: cluster.clone(),
    })
}

fn json(error: StepError) -> EnrolError {
    match error {
        StepError::Json { source, .. } => EnrolError::Json(source),
        other => EnrolError::Json(serde::ser::Error::custom(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{START, objects};
    use hanse_runtime::pki::{csr_for_key, generate_csr, load_certs};
    use hanse_runtime::rng::SeededRng;
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn the_certificate_names_the_tokens_cluster_whatever_was_asked_for() {
        let (objects, rng) = (objects(), SeededRng::new(5));
        let ca = Ca::generate("system", 10, START).unwrap();
        let token = issue(&objects, &rng, "eu", HOUR, START).await.unwrap();
        let (key, csr) = generate_csr("hanse://agent/us").unwrap();
        let enrolled = enrol(&objects, &ca, &token, &csr, START).await.unwrap();
        assert_eq!(
            (enrolled.cluster.as_str(), enrolled.ca_pem.as_str()),
            ("eu", ca.cert_pem())
        );
        let der = load_certs(&enrolled.cert_pem).unwrap();
        let (_, cert) = X509Certificate::from_der(&der[0]).unwrap();
        let names = cert
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names
            .clone();
        assert_eq!(names, [GeneralName::URI("hanse://agent/eu")]);

        let again = csr_for_key("again", &key).unwrap();
        enrol(&objects, &ca, &token, &again, START).await.unwrap();
        let (_, thief) = generate_csr("x").unwrap();
        let refused = enrol(&objects, &ca, &token, &thief, START).await;
        assert!(matches!(refused, Err(EnrolError::Used { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn every_refusal_leaves_the_token_good() {
        let (objects, rng) = (objects(), SeededRng::new(6));
        let ca = Ca::generate("system", 10, START).unwrap();
        let token = issue(&objects, &rng, "eu", HOUR, START).await.unwrap();
        let (_, csr) = generate_csr("eu").unwrap();
        let (id, _) = token.split_once('.').unwrap();
        for bad in [
            "",
            "x",
            ".",
            "nobody.secret",
            &format!("{id}.wrong"),
            &format!("{id}/../x.y"),
        ] {
            let refused = enrol(&objects, &ca, bad, &csr, START).await;
            assert!(matches!(refused, Err(EnrolError::BadToken)), "{bad}: {refused:?}");
        }
        let refused = enrol(&objects, &ca, &token, "no request", START).await;
        assert!(matches!(refused, Err(EnrolError::Request(_))), "{refused:?}");
        let refused = enrol(&objects, &ca, &token, &csr, START.plus(HOUR)).await;
        assert!(matches!(refused, Err(EnrolError::Expired { .. })), "{refused:?}");
        enrol(&objects, &ca, &token, &csr, START).await.unwrap();
    }

    #[tokio::test]
    async fn of_two_keys_at_once_one_gets_the_certificate() {
        let (objects, rng) = (objects(), SeededRng::new(7));
        let ca = Ca::generate("system", 10, START).unwrap();
        let token = issue(&objects, &rng, "eu", HOUR, START).await.unwrap();
        let ((_, a), (_, b)) = (generate_csr("a").unwrap(), generate_csr("b").unwrap());
        let (a, b) = tokio::join!(
            enrol(&objects, &ca, &token, &a, START),
            enrol(&objects, &ca, &token, &b, START)
        );
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert!(matches!(a.err().or(b.err()), Some(EnrolError::Used { .. })));
    }
}
