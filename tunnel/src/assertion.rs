//! Short-lived statements of a server to an agent: "this request is of that caller".
//!
//! The gateway signs with its server's TLS key (ECDSA P-256, SHA-256) and sends its certificate along. The agent checks the
//! chain to the system's authority, that the certificate is a server's, the signature, the cluster, the target, the request and the
//! time. A region that relays requests can therefore not invent users, and an agent not reuse what it was shown elsewhere.

use crate::error::TunnelError;
use crate::identity::{Chains, Credentials, Identity};
use crate::wire::Target;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hanse_api::Timestamp;
use hanse_api::access::Principal;
use parking_lot::Mutex;
use prost::Message;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage};

/// Longest life of an assertion.
pub const LIFE_MAX: Duration = Duration::from_secs(60);
/// Difference of clocks that is forgiven.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// Longest encoded assertion.
pub const LEN_MAX: usize = 256 << 10;
/// Most certificates in an assertion.
const CHAIN_MAX: usize = 4;
/// How many checked certificates a verifier remembers.
const REMEMBERED: usize = 64;
/// How long a checked certificate is not checked again.
const REMEMBER_FOR: Duration = Duration::from_secs(60);
/// Keeps these signatures apart from all others of the same key, TLS handshakes above all.
const CONTEXT: &[u8] = b"hanse identity assertion, version 1\0";

/// What an assertion says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The caller.
    pub principal: Principal,
    /// The connected cluster whose agent is addressed.
    pub cluster: String,
    /// The API server that is addressed.
    pub target: Target,
    /// The request that it is good for.
    pub request_id: String,
    /// Until when it is good, at most [`LIFE_MAX`] ahead.
    pub not_after: Timestamp,
}

/// What the verifying agent knows of the request by itself.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Its own cluster.
    pub cluster: &'a str,
    /// Target in the head of the request.
    pub target: &'a Target,
    /// Id in the head of the request.
    pub request_id: &'a str,
}

/// A checked assertion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it says.
    pub claims: Claims,
    /// The server that signed it.
    pub server: String,
}

#[derive(Clone, PartialEq, Message)]
struct WireExtra {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, repeated, tag = "2")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct WireClaims {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, repeated, tag = "3")]
    groups: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    extra: Vec<WireExtra>,
    #[prost(string, tag = "5")]
    cluster: String,
    /// Empty: the cluster itself.
    #[prost(string, tag = "6")]
    tenant: String,
    #[prost(string, tag = "7")]
    request_id: String,
    #[prost(int64, tag = "8")]
    not_after_millis: i64,
}

#[derive(Clone, PartialEq, Message)]
struct WireAssertion {
    #[prost(bytes = "vec", tag = "1")]
    claims: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    chain: Vec<Vec<u8>>,
}

fn fault(fault: impl Into<String>) -> TunnelError {
    TunnelError::Assertion { fault: fault.into() }
}

fn signed_bytes(claims: &[u8]) -> Vec<u8> {
    [CONTEXT, claims].concat()
}

/// Signs assertions for one server.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    chain: Vec<Vec<u8>>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl Signer {
    /// A signer with a server's key, which must be ECDSA P-256 in PKCS#8.
    pub fn new(credentials: &Credentials) -> Result<Self, TunnelError> {
        let bad = TunnelError::credentials("reading the key that signs identity assertions");
        if !matches!(credentials.identity()?, Identity::Server(_)) {
            return Err(bad("the certificate is not a server's".into()));
        }
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, credentials.key.secret_der())
            .map_err(|error| bad(error.to_string()))?;
        let chain = credentials.chain.iter().map(|cert| cert.to_vec()).collect();
        Ok(Self {
            key,
            random: SystemRandom::new(),
            chain,
        })
    }

    /// Signs `claims`. `not_after` is the caller's to set; an agent refuses one that lies more than [`LIFE_MAX`] ahead.
    pub fn sign(&self, claims: &Claims) -> Result<Vec<u8>, TunnelError> {
        let claims = encode(claims);
        let signature = self
            .key
            .sign(&self.random, &signed_bytes(&claims))
            .map_err(|error| TunnelError::credentials("signing an identity assertion")(error.to_string()))?;
        let assertion = WireAssertion {
            claims,
            signature: signature.as_ref().to_vec(),
            chain: self.chain.clone(),
        }
        .encode_to_vec();
        if assertion.len() > LEN_MAX {
            return Err(TunnelError::TooLarge {
                what: "the identity assertion",
                limit: LEN_MAX,
            });
        }
        Ok(assertion)
    }
}

fn encode(claims: &Claims) -> Vec<u8> {
    let tenant = match &claims.target {
        Target::Cluster => String::new(),
        Target::Tenant { id } => id.clone(),
    };
    let principal = &claims.principal;
    let extra = principal.extra.iter().map(|(key, values)| WireExtra {
        key: key.clone(),
        values: values.clone(),
    });
    WireClaims {
        user: principal.user.clone(),
        uid: principal.uid.clone(),
        groups: principal.groups.clone(),
        extra: extra.collect(),
        cluster: claims.cluster.clone(),
        tenant,
        request_id: claims.request_id.clone(),
        not_after_millis: claims.not_after.as_millis(),
    }
    .encode_to_vec()
}

fn decode(bytes: &[u8]) -> Result<Claims, TunnelError> {
    let wire = WireClaims::decode(bytes).map_err(|error| fault(format!("its claims cannot be read: {error}")))?;
    let extra: BTreeMap<_, _> = wire.extra.into_iter().map(|extra| (extra.key, extra.values)).collect();
    Ok(Claims {
        principal: Principal {
            user: wire.user,
            uid: wire.uid,
            groups: wire.groups,
            extra,
            ..Principal::default()
        },
        cluster: wire.cluster,
        target: if wire.tenant.is_empty() {
            Target::Cluster
        } else {
            Target::Tenant { id: wire.tenant }
        },
        request_id: wire.request_id,
        not_after: Timestamp::from_millis(wire.not_after_millis),
    })
}

struct Remembered {
    cert: Vec<u8>,
    server: String,
    checked: Timestamp,
}

/// Checks assertions for one agent.
pub struct Verifier {
    chains: Chains,
    // Certificates checked not long ago, oldest first: a server signs thousands of assertions with the same one.
    remembered: Mutex<VecDeque<Remembered>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl Verifier {
    /// A verifier that trusts servers of the authority `ca`.
    pub fn new(ca: &CertificateDer<'_>) -> Result<Self, TunnelError> {
        Ok(Self {
            chains: Chains::new(ca)?,
            remembered: Mutex::default(),
        })
    }

    /// Checks `assertion` against what is known of the request, at time `now`.
    pub fn verify(&self, assertion: &[u8], expected: Expected<'_>, now: Timestamp) -> Result<Verified, TunnelError> {
        if assertion.is_empty() {
            return Err(fault("there is none"));
        }
        if assertion.len() > LEN_MAX {
            return Err(TunnelError::TooLarge {
                what: "the identity assertion",
                limit: LEN_MAX,
            });
        }
        let wire = WireAssertion::decode(assertion).map_err(|error| fault(format!("it cannot be read: {error}")))?;
        if wire.chain.is_empty() || wire.chain.len() > CHAIN_MAX {
            return Err(fault("it carries no certificate, or too many"));
        }
        let server = self.server(&wire.chain, now)?;
        let leaf = CertificateDer::from(wire.chain[0].as_slice());
        EndEntityCert::try_from(&leaf)
            .and_then(|cert| {
                let message = signed_bytes(&wire.claims);
                cert.verify_signature(webpki::aws_lc_rs::ECDSA_P256_SHA256, &message, &wire.signature)
            })
            .map_err(|error| fault(format!("its signature is wrong: {error}")))?;
        let claims = decode(&wire.claims)?;
        check(&claims, expected, now)?;
        Ok(Verified { claims, server })
    }

    /// The name in the signer's certificate, after checking that it is a server's of our authority.
    fn server(&self, chain: &[Vec<u8>], now: Timestamp) -> Result<String, TunnelError> {
        if let Some(server) = self.recall(&chain[0], now) {
            return Ok(server);
        }
        let certs: Vec<CertificateDer<'_>> = chain.iter().map(|cert| CertificateDer::from(cert.as_slice())).collect();
        let since_epoch = Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(0));
        self.chains
            .check(
                &certs[0],
                &certs[1..],
                UnixTime::since_unix_epoch(since_epoch),
                KeyUsage::server_auth(),
            )
            .map_err(|error| fault(format!("its certificate is not good: {error}")))?;
        let Identity::Server(server) = Identity::of(&certs[0])? else {
            return Err(fault("its certificate is not a server's"));
        };
        let mut remembered = self.remembered.lock();
        remembered.retain(|entry| entry.cert != chain[0]);
        if remembered.len() >= REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back(Remembered {
            cert: chain[0].clone(),
            server: server.clone(),
            checked: now,
        });
        Ok(server)
    }

    fn recall(&self, cert: &[u8], now: Timestamp) -> Option<String> {
        let remembered = self.remembered.lock();
        let entry = remembered.iter().find(|entry| entry.cert == cert)?;
        let fresh = now >= entry.checked && now.since(entry.checked) < REMEMBER_FOR;
        fresh.then(|| entry.server.clone())
    }
}

fn check(claims: &Claims, expected: Expected<'_>, now: Timestamp) -> Result<(), TunnelError> {
    if claims.principal.user.is_empty() {
        return Err(fault("it names no user"));
    }
    if claims.cluster != expected.cluster {
        return Err(fault(format!(
            "it is for cluster {:?}, not for {:?}",
            claims.cluster, expected.cluster
        )));
    }
    if claims.target != *expected.target {
        return Err(fault("it is for another target than the request"));
    }
    if claims.request_id != expected.request_id {
        return Err(fault("it is for another request"));
    }
    if now > claims.not_after.plus(LEEWAY) {
        return Err(fault(
            "it has expired; check the clocks of agent and server if this happens often",
        ));
    }
    if claims.not_after > now.plus(LIFE_MAX).plus(LEEWAY) {
        return Err(fault("it would live too long; check the clocks of agent and server"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestPki;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn claims() -> Claims {
        Claims {
            principal: Principal {
                user: "ann".into(),
                uid: "u1".into(),
                groups: vec!["system:authenticated".into()],
                extra: BTreeMap::from([("k".into(), vec!["v".into(), "w".into()])]),
                ..Principal::default()
            },
            cluster: "eu".into(),
            target: Target::Tenant { id: "t1".into() },
            request_id: "r1".into(),
            not_after: NOW.plus(Duration::from_secs(30)),
        }
    }

    fn expected<'a>(claims: &'a Claims) -> Expected<'a> {
        Expected {
            cluster: "eu",
            target: &claims.target,
            request_id: "r1",
        }
    }

    fn setup() -> (TestPki, Signer, Verifier) {
        let pki = TestPki::new(NOW).unwrap();
        let signer = Signer::new(&pki.server("s1").unwrap()).unwrap();
        let verifier = Verifier::new(&pki.ca().unwrap()).unwrap();
        (pki, signer, verifier)
    }

    #[test]
    fn holds_when_everything_fits_also_from_memory() {
        let (_, signer, verifier) = setup();
        let claims = claims();
        let bytes = signer.sign(&claims).unwrap();
        for seconds in [0, 1, 34] {
            let now = NOW.plus(Duration::from_secs(seconds));
            let got = verifier.verify(&bytes, expected(&claims), now).unwrap();
            assert_eq!(
                got,
                Verified {
                    claims: claims.clone(),
                    server: "s1".into()
                }
            );
        }
    }

    #[test]
    fn each_lie_is_refused() {
        let (_, signer, verifier) = setup();
        let good = claims();
        let with = |change: &dyn Fn(&mut Claims)| {
            let mut claims = good.clone();
            change(&mut claims);
            signer.sign(&claims).unwrap()
        };
        let cases: [(&str, Vec<u8>); 7] = [
            (
                "expired",
                with(&|c| c.not_after = Timestamp::from_millis(NOW.as_millis() - 5001)),
            ),
            (
                "live too long",
                with(&|c| c.not_after = NOW.plus(Duration::from_secs(66))),
            ),
            ("not for \"eu\"", with(&|c| c.cluster = "us".into())),
            ("another target", with(&|c| c.target = Target::Cluster)),
            ("another request", with(&|c| c.request_id = "r2".into())),
            ("names no user", with(&|c| c.principal.user.clear())),
            ("there is none", Vec::new()),
        ];
        for (want, bytes) in cases {
            let got = verifier.verify(&bytes, expected(&good), NOW).unwrap_err().to_string();
            assert!(got.contains(want), "{want}: {got}");
        }
    }

    #[test]
    fn tampering_anywhere_is_noticed() {
        let (_, signer, verifier) = setup();
        let claims = claims();
        let good = signer.sign(&claims).unwrap();
        verifier.verify(&good, expected(&claims), NOW).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            // A flip in the chain's own signature may hit a remembered certificate's twin, but never changes what is said.
            if let Ok(got) = verifier.verify(&bad, expected(&claims), NOW) {
                assert_eq!(got.claims, claims, "byte {at}");
            }
        }
        let mut swapped = WireAssertion::decode(good.as_slice()).unwrap();
        swapped.claims = encode(&Claims {
            principal: Principal {
                user: "root".into(),
                ..Default::default()
            },
            ..claims.clone()
        });
        let error = verifier
            .verify(&swapped.encode_to_vec(), expected(&claims), NOW)
            .unwrap_err();
        assert!(error.to_string().contains("signature"), "{error}");
    }

    #[test]
    fn only_servers_of_our_authority_may_sign() {
        let (pki, _, verifier) = setup();
        let claims = claims();
        assert!(Signer::new(&pki.agent("eu").unwrap()).is_err());
        let stranger = Signer::new(&TestPki::new(NOW).unwrap().server("s1").unwrap()).unwrap();
        let error = verifier
            .verify(&stranger.sign(&claims).unwrap(), expected(&claims), NOW)
            .unwrap_err();
        assert!(error.to_string().contains("certificate is not good"), "{error}");
        let agent = pki.agent("eu").unwrap();
        let forger = Signer {
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, agent.key.secret_der()).unwrap(),
            random: SystemRandom::new(),
            chain: agent.chain.iter().map(|cert| cert.to_vec()).collect(),
        };
        assert!(
            verifier
                .verify(&forger.sign(&claims).unwrap(), expected(&claims), NOW)
                .is_err()
        );
        let late = NOW.plus(Duration::from_secs(40 * 86_400));
        let signer = Signer::new(&pki.server("s1").unwrap()).unwrap();
        let fresh = Claims {
            not_after: late.plus(Duration::from_secs(10)),
            ..claims.clone()
        };
        assert!(
            verifier
                .verify(&signer.sign(&fresh).unwrap(), expected(&claims), late)
                .is_err()
        );
    }
}
