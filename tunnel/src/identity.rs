//! Who is at the other end: names in certificates of the system's own authority, and nothing else.
//!
//! An identity is the one `hanse://` URI in a certificate. Web PKI, DNS names and addresses play no part, so that whoever takes
//! over a name or an address gains nothing.

use crate::error::TunnelError;
use hanse_api::name::check_subdomain;
use hanse_runtime::pki;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use std::fmt;
use std::sync::Arc;
use webpki::{EndEntityCert, KeyUsage};

/// Scheme of the URIs that name processes.
const SCHEME: &str = "hanse://";

/// Who a certificate stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A server, by name.
    Server(String),
    /// The agent of a connected cluster, by the cluster's name.
    Agent(String),
}

impl Identity {
    /// The URI to put into a certificate.
    pub fn uri(&self) -> String {
        match self {
            Self::Server(name) => format!("{SCHEME}server/{name}"),
            Self::Agent(cluster) => format!("{SCHEME}agent/{cluster}"),
        }
    }

    /// Reads a URI.
    pub fn parse(uri: &str) -> Result<Self, TunnelError> {
        let fault = |why: &str| TunnelError::Identity {
            fault: format!("{uri:?} {why}"),
        };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| fault("is no hanse:// URI"))?;
        let (role, name) = rest.split_once('/').ok_or_else(|| fault("has no name"))?;
        check_subdomain(name).map_err(|why| fault(&why))?;
        match role {
            "server" => Ok(Self::Server(name.to_owned())),
            "agent" => Ok(Self::Agent(name.to_owned())),
            _ => Err(fault("has an unknown role")),
        }
    }

    /// The identity in a certificate. The chain must have been checked before.
    pub fn of(cert: &CertificateDer<'_>) -> Result<Self, TunnelError> {
        let parsed = EndEntityCert::try_from(cert).map_err(|error| TunnelError::Identity {
            fault: format!("the certificate cannot be read: {error}"),
        })?;
        let mut ours = parsed.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        match (ours.next(), ours.next()) {
            (Some(uri), None) => Self::parse(uri),
            (None, _) => Err(TunnelError::Identity {
                fault: "no hanse:// name is in it".into(),
            }),
            (Some(_), Some(_)) => Err(TunnelError::Identity {
                fault: "more than one hanse:// name is in it".into(),
            }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => write!(f, "server {name}"),
            Self::Agent(cluster) => write!(f, "agent {cluster}"),
        }
    }
}

/// Protocol of a connection, by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Users' requests; the server opens the streams.
    Control,
    /// Tenants' store calls; the agent opens the streams.
    Store,
    /// One enrolment, without a client certificate.
    Enrol,
}

impl Protocol {
    /// All.
    pub const ALL: [Self; 3] = [Self::Control, Self::Store, Self::Enrol];

    /// Name in the TLS handshake.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => b"hanse-control/1",
            Self::Store => b"hanse-store/1",
            Self::Enrol => b"hanse-enrol/1",
        }
    }

    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Store => "store",
            Self::Enrol => "enrolment",
        }
    }

    fn from_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == alpn)
    }
}

/// Who may speak what to a server: agents with a certificate all but enrolment, strangers enrolment only.
/// `cert` is a certificate whose chain was checked in the handshake.
pub fn admit(
    alpn: Option<&[u8]>,
    cert: Option<&CertificateDer<'_>>,
) -> Result<(Protocol, Option<String>), TunnelError> {
    let fault = |fault: &str| TunnelError::Identity { fault: fault.into() };
    let protocol = alpn
        .and_then(Protocol::from_alpn)
        .ok_or_else(|| fault("no protocol of ours was agreed on"))?;
    match (protocol, cert) {
        (Protocol::Enrol, None) => Ok((protocol, None)),
        (Protocol::Enrol, Some(_)) => Err(fault("who has a certificate must not enrol with it")),
        (Protocol::Control | Protocol::Store, None) => Err(fault("no client certificate was shown")),
        (Protocol::Control | Protocol::Store, Some(cert)) => match Identity::of(cert)? {
            Identity::Agent(cluster) => Ok((protocol, Some(cluster))),
            Identity::Server(name) => Err(fault(&format!("server {name} must not connect as an agent"))),
        },
    }
}

/// A certificate chain with its private key, and the authority by which others are checked.
pub struct Credentials {
    /// Own chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Own key.
    pub key: PrivateKeyDer<'static>,
    /// The system's authority.
    pub ca: CertificateDer<'static>,
}

impl Credentials {
    /// From PEM texts.
    pub fn from_pem(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, TunnelError> {
        let fault = TunnelError::credentials("reading the tunnel's key and certificates");
        let chain = pki::load_certs(cert_pem).map_err(|error| fault(error.to_string()))?;
        let key = pki::load_key(key_pem).map_err(|error| fault(error.to_string()))?;
        let mut cas = pki::load_certs(ca_pem).map_err(|error| fault(error.to_string()))?;
        Ok(Self {
            chain,
            key,
            ca: cas.swap_remove(0),
        })
    }

    /// The identity of the own certificate.
    pub fn identity(&self) -> Result<Identity, TunnelError> {
        let leaf = self.chain.first().ok_or_else(|| TunnelError::Identity {
            fault: "there is no certificate".into(),
        })?;
        Identity::of(leaf)
    }

    /// Whether the certificate is for the key.
    pub fn key_fits(&self) -> bool {
        let key = provider().key_provider.load_private_key(self.key.clone_key());
        key.is_ok_and(|key| CertifiedKey::new(self.chain.clone(), key).keys_match().is_ok())
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            ca: self.ca.clone(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity().map_or("?".into(), |i| i.to_string()))
            .finish()
    }
}

/// Checks chains against one authority.
#[derive(Clone)]
pub(crate) struct Chains {
    anchor: TrustAnchor<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chains(..)")
    }
}

impl Chains {
    pub(crate) fn new(ca: &CertificateDer<'_>) -> Result<Self, TunnelError> {
        let anchor = webpki::anchor_from_trusted_cert(ca)
            .map_err(|error| TunnelError::credentials("reading the system's authority")(error.to_string()))?
            .to_owned();
        Ok(Self {
            anchor,
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// Whether `cert` is of the authority, now valid, and meant for `usage`.
    pub(crate) fn check(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), webpki::Error> {
        let parsed = EndEntityCert::try_from(cert)?;
        let anchors = std::slice::from_ref(&self.anchor);
        parsed
            .verify_for_usage(self.algorithms.all, anchors, intermediates, now, usage, None, None)
            .map(|_path| ())
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

fn tls_error(error: webpki::Error) -> rustls::Error {
    let certificate = match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        // An authority of the same name, but another one: two installations of Hanse look like that to each other.
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::BadDer => CertificateError::BadEncoding,
        _ => CertificateError::ApplicationVerificationFailure,
    };
    rustls::Error::InvalidCertificate(certificate)
}

const NO_TLS12: rustls::Error = rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered);

/// Checks clients: of our authority, or without a certificate at all (then [`admit`] allows enrolment only).
#[derive(Debug)]
pub(crate) struct AgentVerifier(pub(crate) Chains);

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0
            .check(end_entity, intermediates, now, KeyUsage::client_auth())
            .map_err(tls_error)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// By what an agent knows its servers.
#[derive(Debug)]
pub(crate) enum ServerTrust {
    /// The system's authority.
    Authority(Chains),
    /// SHA-256 of the authority's certificate, which the server must send along. Before enrolment only.
    Pin(String),
}

impl ServerTrust {
    fn check(
        &self,
        cert: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let unknown = || tls_error(webpki::Error::UnknownIssuer);
        match self {
            Self::Authority(chains) => chains
                .check(cert, rest, now, KeyUsage::server_auth())
                .map_err(tls_error),
            Self::Pin(pin) => {
                let ca = rest.iter().find(|ca| pki::sha256_hex(ca) == *pin).ok_or_else(unknown)?;
                let chains = Chains::new(ca).map_err(|_bad| unknown())?;
                chains
                    .check(cert, rest, now, KeyUsage::server_auth())
                    .map_err(tls_error)
            }
        }
    }
}

/// Checks servers: of our authority, with a server's identity.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) trust: ServerTrust,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(crate) fn new(trust: ServerTrust) -> Self {
        Self {
            trust,
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.check(end_entity, intermediates, now)?;
        match Identity::of(end_entity) {
            Ok(Identity::Server(_)) => Ok(ServerCertVerified::assertion()),
            Ok(Identity::Agent(_)) | Err(_) => Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The one crypto provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Shows a server's chain, and the authority's certificate as well to those who enrol: they know only its checksum.
#[derive(Debug)]
pub(crate) struct ServerChains {
    plain: Arc<CertifiedKey>,
    with_ca: Arc<CertifiedKey>,
}

impl ServerChains {
    pub(crate) fn new(credentials: &Credentials) -> Result<Self, TunnelError> {
        let key = provider()
            .key_provider
            .load_private_key(credentials.key.clone_key())
            .map_err(|error| TunnelError::credentials("reading the server's key")(error.to_string()))?;
        let mut longer = credentials.chain.clone();
        longer.push(credentials.ca.clone());
        Ok(Self {
            plain: Arc::new(CertifiedKey::new(credentials.chain.clone(), Arc::clone(&key))),
            with_ca: Arc::new(CertifiedKey::new(longer, key)),
        })
    }
}

impl rustls::server::ResolvesServerCert for ServerChains {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let enrols = hello
            .alpn()
            .is_some_and(|mut offered| offered.any(|name| name == Protocol::Enrol.alpn()));
        Some(Arc::clone(if enrols { &self.with_ca } else { &self.plain }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::Timestamp;
    use hanse_runtime::pki::{Ca, LeafSpec};

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn cert(uris: &[&str]) -> CertificateDer<'static> {
        let ca = Ca::generate("test", 10, NOW).unwrap();
        let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        let leaf = ca
            .issue(
                &LeafSpec {
                    common_name: "x".into(),
                    uris,
                    days: 1,
                    ..Default::default()
                },
                NOW,
            )
            .unwrap();
        pki::load_certs(&leaf.cert).unwrap().swap_remove(0)
    }

    #[test]
    fn uris() {
        for identity in [Identity::Server("eu-1".into()), Identity::Agent("c".into())] {
            assert_eq!(Identity::parse(&identity.uri()).unwrap(), identity);
        }
        for bad in [
            "hanse://server/",
            "hanse://server/A",
            "hanse://owner/x",
            "hanse://server",
            "https://server/x",
            "hanse://agent/a/b",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exactly_one_name_counts() {
        assert_eq!(
            Identity::of(&cert(&["https://x.dev", "hanse://agent/eu"])).unwrap(),
            Identity::Agent("eu".into())
        );
        assert!(Identity::of(&cert(&["https://x.dev"])).is_err());
        assert!(Identity::of(&cert(&["hanse://agent/eu", "hanse://agent/us"])).is_err());
    }

    #[test]
    fn who_may_speak_what() {
        let agent = cert(&["hanse://agent/eu"]);
        let server = cert(&["hanse://server/eu"]);
        type Case<'a> = (
            Option<&'a [u8]>,
            Option<&'a CertificateDer<'a>>,
            Option<(Protocol, Option<&'a str>)>,
        );
        let cases: [Case<'_>; 9] = [
            (
                Some(b"hanse-control/1"),
                Some(&agent),
                Some((Protocol::Control, Some("eu"))),
            ),
            (
                Some(b"hanse-store/1"),
                Some(&agent),
                Some((Protocol::Store, Some("eu"))),
            ),
            (Some(b"hanse-enrol/1"), None, Some((Protocol::Enrol, None))),
            (Some(b"hanse-enrol/1"), Some(&agent), None),
            (Some(b"hanse-control/1"), None, None),
            (Some(b"hanse-store/1"), None, None),
            (Some(b"hanse-control/1"), Some(&server), None),
            (Some(b"h3"), Some(&agent), None),
            (None, Some(&agent), None),
        ];
        for (alpn, cert, want) in cases {
            let got = admit(alpn, cert).ok();
            let want = want.map(|(protocol, name)| (protocol, name.map(str::to_owned)));
            assert_eq!(got, want, "{alpn:?}");
        }
    }
}
