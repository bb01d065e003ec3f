//! X.509 (RFC 5280): authorities, leaf certificates and certificate requests. ECDSA P-256, but for derived authorities.

use aws_lc_rs::digest;
use aws_lc_rs::signature::Ed25519KeyPair;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair as RcgenKey, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use hanse_api::Timestamp;
use hanse_api::intent::KeyPair;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library refused it.
    #[error("{what}: {fault}")]
    Certificate {
        /// What was being done.
        what: &'static str,
        /// The library's words.
        fault: String,
    },
}

impl PkiError {
    /// Whether a later try may succeed.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Certificate { .. } => false,
        }
    }
}

fn fault<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> PkiError {
    move |error| PkiError::Certificate {
        what,
        fault: error.to_string(),
    }
}

/// What a leaf certificate says.
#[derive(Clone, Debug, Default)]
pub struct LeafSpec {
    /// CN: the user in Kubernetes.
    pub common_name: String,
    /// O, repeated: the groups in Kubernetes.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// URI names, such as `hanse://server/eu-1`.
    pub uris: Vec<String>,
    /// Usable by TLS clients.
    pub client: bool,
    /// Usable by TLS servers.
    pub server: bool,
    /// Lifetime in days.
    pub days: u32,
}

/// Clock differences that a new certificate tolerates.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, RcgenKey>,
    cert_pem: String,
    key_pem: String,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ca(..)")
    }
}

impl Ca {
    /// A new self-signed authority that lives `days` from `now`.
    pub fn generate(common_name: &str, days: u32, now: Timestamp) -> Result<Self, PkiError> {
        let key = RcgenKey::generate().map_err(fault("making an authority"))?;
        Self::self_signed(&key, common_name, days, now)
    }

    /// The authority that everybody who knows `secret` makes: same name, same key (Ed25519). It is as strong as the secret is
    /// hard to guess.
    pub fn derived(common_name: &str, secret: &[u8], days: u32, now: Timestamp) -> Result<Self, PkiError> {
        let what = "deriving an authority";
        let seed = digest::digest(&digest::SHA256, secret);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(fault(what))?;
        let encoded = pair.to_pkcs8().map_err(fault(what))?;
        let key = RcgenKey::try_from(encoded.as_ref()).map_err(fault(what))?;
        Self::self_signed(&key, common_name, days, now)
    }

    fn self_signed(key: &RcgenKey, common_name: &str, days: u32, now: Timestamp) -> Result<Self, PkiError> {
        let what = "making an authority";
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.distinguished_name.push(DnType::CommonName, common_name);
        validity(&mut params, days, now)?;
        let cert = params.self_signed(key).map_err(fault(what))?;
        Self::load(&cert.pem(), &key.serialize_pem())
    }

    /// An authority from its certificate and key, PEM.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let what = "reading an authority";
        let key = RcgenKey::from_pem(key_pem).map_err(fault(what))?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(fault(what))?;
        Ok(Self {
            issuer,
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// Its certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Certificate and key.
    pub fn key_pair(&self) -> KeyPair {
        KeyPair {
            cert: self.cert_pem.clone(),
            key: self.key_pem.clone(),
        }
    }

    /// A new key with a certificate of this authority.
    pub fn issue(&self, spec: &LeafSpec, now: Timestamp) -> Result<KeyPair, PkiError> {
        let what = "issuing a certificate";
        let key = RcgenKey::generate().map_err(fault(what))?;
        let cert = leaf_params(spec, now)?
            .signed_by(&key, &self.issuer)
            .map_err(fault(what))?;
        Ok(KeyPair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A certificate for the key of `csr_pem`. Everything else in the request is ignored: names come from `spec`, so that
    /// nobody can ask for another's name.
    pub fn sign_csr(&self, csr_pem: &str, spec: &LeafSpec, now: Timestamp) -> Result<String, PkiError> {
        let what = "signing a certificate request";
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(fault(what))?;
        let cert = leaf_params(spec, now)?
            .signed_by(&csr.public_key, &self.issuer)
            .map_err(fault(what))?;
        Ok(cert.pem())
    }
}

/// A new key (PKCS#8 PEM) and a certificate request for it.
pub fn generate_csr(common_name: &str) -> Result<(String, String), PkiError> {
    let what = "making a certificate request";
    let key = RcgenKey::generate().map_err(fault(what))?;
    let csr = csr_for_key(common_name, &key.serialize_pem())?;
    Ok((key.serialize_pem(), csr))
}

/// A certificate request for an existing key (PKCS#8 PEM): a lost answer is asked for again with the same key.
pub fn csr_for_key(common_name: &str, key_pem: &str) -> Result<String, PkiError> {
    let what = "making a certificate request";
    let key = RcgenKey::from_pem(key_pem).map_err(fault(what))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
        .serialize_request(&key)
        .map_err(fault(what))?
        .pem()
        .map_err(fault(what))
}

/// SHA-256 (lower-case hex) of the public key in a certificate request, to recognise the same key again.
pub fn csr_key_sha256(csr_pem: &str) -> Result<String, PkiError> {
    let what = "reading a certificate request";
    let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(fault(what))?;
    use rcgen::PublicKeyData as _;
    Ok(sha256_hex(csr.public_key.der_bytes()))
}

/// SHA-256 of the public key in a certificate, as [`csr_key_sha256`] has it of the request for one.
pub fn cert_key_sha256(cert: &CertificateDer<'_>) -> Result<String, PkiError> {
    let (_, cert) = X509Certificate::from_der(cert).map_err(fault("reading a certificate"))?;
    Ok(sha256_hex(&cert.public_key().subject_public_key.data))
}

/// A bare key pair: private key as PKCS#8 PEM in `key`, public key as SPKI PEM in `cert`.
pub fn generate_key_pair() -> Result<KeyPair, PkiError> {
    let key = RcgenKey::generate().map_err(fault("making a key"))?;
    Ok(KeyPair {
        cert: key.public_key_pem(),
        key: key.serialize_pem(),
    })
}

fn leaf_params(spec: &LeafSpec, now: Timestamp) -> Result<CertificateParams, PkiError> {
    let what = "naming a certificate";
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, spec.common_name.as_str());
    for organization in &spec.organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    params.distinguished_name = name;
    for dns in &spec.dns {
        params
            .subject_alt_names
            .push(SanType::DnsName(dns.as_str().try_into().map_err(fault(what))?));
    }
    params
        .subject_alt_names
        .extend(spec.ips.iter().copied().map(SanType::IpAddress));
    for uri in &spec.uris {
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().map_err(fault(what))?));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if spec.client {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    if spec.server {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, spec.days, now)?;
    Ok(params)
}

fn validity(params: &mut CertificateParams, days: u32, now: Timestamp) -> Result<(), PkiError> {
    let at = |millis: i64| {
        time::OffsetDateTime::from_unix_timestamp(millis.div_euclid(1000)).map_err(fault("dating a certificate"))
    };
    let backdate = i64::try_from(BACKDATE.as_millis()).unwrap_or(0);
    params.not_before = at(now.as_millis().saturating_sub(backdate))?;
    params.not_after = at(now.plus(DAY.saturating_mul(days)).as_millis())?;
    Ok(())
}

/// The certificates in a PEM text, in order.
pub fn load_certs(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let what = "reading certificates";
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(fault(what))?;
    if certs.is_empty() {
        return Err(PkiError::Certificate {
            what,
            fault: "no certificate in it".to_owned(),
        });
    }
    Ok(certs)
}

/// The first private key in a PEM text.
pub fn load_key(pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(fault("reading a private key"))
}

/// SHA-256 (FIPS 180-4) of `bytes`, in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    digest::digest(&digest::SHA256, bytes)
        .as_ref()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    #[test]
    fn a_request_cannot_choose_its_own_name() {
        let ca = Ca::generate("test", 10, NOW).unwrap();
        let (key, csr) = generate_csr("system:masters").unwrap();
        let spec = LeafSpec {
            common_name: "eu".into(),
            uris: vec!["hanse://agent/eu".into()],
            client: true,
            days: 1,
            ..Default::default()
        };
        let pem = ca.sign_csr(&csr, &spec, NOW).unwrap();
        let der = load_certs(&pem).unwrap();
        let (_, cert) = X509Certificate::from_der(&der[0]).unwrap();
        assert_eq!(cert.subject().to_string(), "CN=eu");
        assert_eq!(
            csr_key_sha256(&csr).unwrap(),
            csr_key_sha256(&csr_for_key("x", &key).unwrap()).unwrap()
        );
        assert!(csr_key_sha256("nonsense").is_err());
        let ca = Ca::generate("test", 10, NOW).unwrap();
        let cert = ca.sign_csr(&csr, &LeafSpec::default(), NOW).unwrap();
        let cert = &load_certs(&cert).unwrap()[0];
        assert_eq!(cert_key_sha256(cert).unwrap(), csr_key_sha256(&csr).unwrap());
    }

    #[test]
    fn who_knows_the_secret_makes_the_same_authority() {
        let later = Timestamp::from_millis(NOW.as_millis() + 86_400_000);
        let ca = Ca::derived("peers", b"secret", 10, NOW).unwrap();
        let again = Ca::derived("peers", b"secret", 10, later).unwrap();
        let other = Ca::derived("peers", b"another", 10, NOW).unwrap();
        let spec = LeafSpec {
            common_name: "a".into(),
            dns: vec!["localhost".into()],
            server: true,
            days: 1,
            ..Default::default()
        };
        let leaf = load_certs(&ca.issue(&spec, NOW).unwrap().cert).unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf[0]).unwrap();
        let signed_by = |ca: &Ca| {
            let der = load_certs(ca.cert_pem()).unwrap();
            let (_, root) = X509Certificate::from_der(&der[0]).unwrap();
            leaf.verify_signature(Some(root.public_key())).is_ok()
        };
        assert!(signed_by(&ca) && signed_by(&again) && !signed_by(&other));
    }

    #[test]
    fn leaves_carry_users_and_groups_for_kubernetes() {
        let ca = Ca::generate("test", 10, NOW).unwrap();
        let again = Ca::load(ca.cert_pem(), &ca.key_pair().key).unwrap();
        let spec = LeafSpec {
            common_name: "admin".into(),
            organizations: vec!["system:masters".into()],
            ips: vec!["127.0.0.1".parse().unwrap()],
            client: true,
            days: 1,
            ..Default::default()
        };
        let leaf = again.issue(&spec, NOW).unwrap();
        let der = load_certs(&leaf.cert).unwrap();
        let (_, cert) = X509Certificate::from_der(&der[0]).unwrap();
        let root_der = load_certs(ca.cert_pem()).unwrap();
        let (_, root) = X509Certificate::from_der(&root_der[0]).unwrap();
        assert!(cert.verify_signature(Some(root.public_key())).is_ok());
        assert!(cert.subject().to_string().contains("O=system:masters"));
        assert!(load_key(&leaf.key).is_ok());
        assert!(!format!("{leaf:?}").contains("PRIVATE"));
    }
}
