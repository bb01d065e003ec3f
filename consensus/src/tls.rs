//! Mutual TLS between servers. A certificate counts only if our CA signed it and it names `hanse://server/<name>`:
//! addresses change, names do not, and an agent's certificate of the same CA must not open this door.
//!
//! Where the store stands in for etcd ([`Trust::Hosts`], [`Trust::Open`]) it follows etcd's rules instead.

use crate::error::ConsensusError;
use crate::revoked::Revoked;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::fmt;
use std::sync::Arc;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How the name of a server begins in its certificate.
const SERVER_URI: &str = "hanse://server/";
/// What clients send as SNI; the server does not look at it.
const SNI: &str = "hanse-server";

/// Certificates and key of a server, PEM.
#[derive(Clone)]
pub struct TlsPem {
    /// The CA that signs all servers.
    pub ca: String,
    /// This server's certificate chain.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsPem(..)")
    }
}

/// How servers know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// By certificates that name `hanse://server/<name>`.
    #[default]
    Names,
    /// By certificates of the CA: a server's must be for the host of its address, a caller's may be any. etcd's rule.
    Hosts,
    /// Not at all, and nothing is encrypted: etcd's peers with http URLs. Whoever reaches the port can change everything.
    Open,
}

/// The same, read and ready for connections in both directions.
#[derive(Clone)]
pub struct Tls {
    trust: Trust,
    material: Option<Material>,
    revoked: Revoked,
}

#[derive(Clone)]
struct Material {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    ca: Certificate,
    identity: Identity,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

fn fault<E>(what: &str) -> impl FnOnce(E) -> ConsensusError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let what = what.to_owned();
    move |source| ConsensusError::Tls {
        what,
        source: Box::new(source),
    }
}

impl Tls {
    /// Reads `pem`; the certificate must name this server.
    pub fn new(pem: &TlsPem, name: &str) -> Result<Self, ConsensusError> {
        Self::by(Trust::Names, pem, name)
    }

    /// The same by another rule. [`Trust::Open`] reads nothing.
    pub fn by(trust: Trust, pem: &TlsPem, name: &str) -> Result<Self, ConsensusError> {
        let material = match trust {
            Trust::Names => {
                check_name(pem, name)?;
                Some(Material::read(pem)?)
            }
            Trust::Hosts => Some(Material::read(pem)?),
            Trust::Open => None,
        };
        Ok(Self {
            trust,
            material,
            revoked: Revoked::default(),
        })
    }

    /// Keys that are refused, in both directions.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// The rule.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// For the listener; none where it is open.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.material.as_ref().map(|material| Arc::clone(&material.server))
    }

    /// How URLs of other servers begin.
    pub fn scheme(&self) -> &'static str {
        match self.trust {
            Trust::Names | Trust::Hosts => "https",
            Trust::Open => "http",
        }
    }

    /// Makes `endpoint` speak to the server called `name` and to no other, or to whom the rule allows.
    pub fn secure(&self, endpoint: Endpoint, name: &str) -> Result<Endpoint, ConsensusError> {
        let Some(material) = &self.material else {
            return Ok(endpoint);
        };
        let config = ClientTlsConfig::new()
            .identity(material.identity.clone())
            .assume_http2(true);
        match self.trust {
            Trust::Names => {
                let verifier = NameVerifier {
                    provider: Arc::clone(&material.provider),
                    roots: Arc::clone(&material.roots),
                    name: name.to_owned(),
                    revoked: self.revoked.clone(),
                };
                endpoint.tls_config_with_verifier(config.domain_name(SNI), Arc::new(verifier))
            }
            Trust::Hosts | Trust::Open => endpoint.tls_config(config.ca_certificate(material.ca.clone())),
        }
        .map_err(fault("the client side"))
    }
}

fn check_name(pem: &TlsPem, name: &str) -> Result<(), ConsensusError> {
    let chain = hanse_runtime::pki::load_certs(&pem.cert).map_err(fault("the server's certificate"))?;
    match chain.first().and_then(server_name) {
        Some(found) if found == name => Ok(()),
        found => {
            let found = found.unwrap_or_else(|| "no server".to_owned());
            let fault =
                format!("the certificate names {found}, but this server is {name}: issue one for {SERVER_URI}{name}");
            Err(ConsensusError::Config {
                field: "tls.cert",
                fault,
            })
        }
    }
}

impl Material {
    fn read(pem: &TlsPem) -> Result<Self, ConsensusError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for root in hanse_runtime::pki::load_certs(&pem.ca).map_err(fault("the CA certificate"))? {
            roots.add(root).map_err(fault("the CA certificate"))?;
        }
        let roots = Arc::new(roots);
        let chain = hanse_runtime::pki::load_certs(&pem.cert).map_err(fault("the server's certificate"))?;
        let key = hanse_runtime::pki::load_key(&pem.key).map_err(fault("the server's key"))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(fault("the verifier of client certificates"))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(fault("the protocol versions"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(fault("the server's certificate and key"))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            provider,
            roots,
            ca: Certificate::from_pem(&pem.ca),
            identity: Identity::from_pem(&pem.cert, &pem.key),
            server: Arc::new(server),
        })
    }
}

/// The server that a certificate names.
pub fn server_name(cert: &CertificateDer<'_>) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SERVER_URI).map(str::to_owned),
        _ => None,
    })
}

/// Accepts the server of one name, whatever its address.
#[derive(Debug)]
struct NameVerifier {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    name: String,
    revoked: Revoked,
}

impl ServerCertVerifier for NameVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _sni: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        if self.revoked.has(end_entity) {
            return Err(CertificateError::Revoked.into());
        }
        if server_name(end_entity).as_deref() == Some(self.name.as_str()) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::Timestamp;
    use hanse_runtime::pki::{Ca, LeafSpec};

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn pem(uri: &str) -> TlsPem {
        let ca = Ca::generate("test", 10, NOW).unwrap();
        let spec = LeafSpec {
            common_name: "x".into(),
            uris: vec![uri.into()],
            client: true,
            server: true,
            days: 1,
            ..Default::default()
        };
        let leaf = ca.issue(&spec, NOW).unwrap();
        TlsPem {
            ca: ca.cert_pem().to_owned(),
            cert: leaf.cert,
            key: leaf.key,
        }
    }

    #[test]
    fn a_certificate_of_another_name_is_refused_at_start() {
        assert!(Tls::new(&pem("hanse://server/eu"), "eu").is_ok());
        for uri in ["hanse://server/us", "hanse://agent/eu", "https://eu"] {
            let error = Tls::new(&pem(uri), "eu").unwrap_err().to_string();
            assert!(error.contains("issue one for hanse://server/eu"), "{error}");
        }
        let broken = TlsPem {
            key: "nonsense".into(),
            ..pem("hanse://server/eu")
        };
        assert!(Tls::new(&broken, "eu").unwrap_err().to_string().contains("key"));
        assert!(!format!("{:?}", pem("hanse://server/eu")).contains("PRIVATE"));
    }

    #[test]
    fn the_verifier_wants_our_ca_and_the_name() {
        let ours = pem("hanse://server/eu");
        let tls = Tls::new(&ours, "eu").unwrap();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_millis(1_790_000_000_000));
        let verify = |name: &str, cert: &str| {
            let verifier = NameVerifier {
                provider: Arc::clone(&tls.material.as_ref().unwrap().provider),
                roots: Arc::clone(&tls.material.as_ref().unwrap().roots),
                name: name.into(),
                revoked: tls.revoked().clone(),
            };
            let cert = hanse_runtime::pki::load_certs(cert).unwrap();
            verifier
                .verify_server_cert(&cert[0], &[], &SNI.try_into().unwrap(), &[], at)
                .is_ok()
        };
        assert!(verify("eu", &ours.cert));
        assert!(!verify("us", &ours.cert));
        assert!(!verify("eu", &pem("hanse://server/eu").cert), "another CA");
        let own = &hanse_runtime::pki::load_certs(&ours.cert).unwrap()[0];
        let own = hanse_runtime::pki::cert_key_sha256(own).unwrap();
        tls.revoked().set([own].into());
        assert!(!verify("eu", &ours.cert), "of a server that was removed");
    }
}
