//! Whom the client trusts: one given authority, the system's, or (on demand) anybody.

use crate::error::{Error, Result};
use hanse_runtime::pki;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// Where trusted authorities come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Only the authorities in this PEM text.
    Pinned(String),
    /// The system's.
    System,
    /// Everybody: the caller asked for it.
    Anybody,
}

/// Bundles of the common distributions.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// TLS settings for `trust`.
pub(crate) fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::failed(format!("TLS cannot be set up: {e}")))?;
    let mut config = match trust {
        Trust::Anybody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoVerifier { provider }))
            .with_no_client_auth(),
        Trust::Pinned(pem) => builder.with_root_certificates(roots(pem)?).with_no_client_auth(),
        Trust::System => builder
            .with_root_certificates(roots(&system_bundle()?)?)
            .with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The authorities in `pem`; certificates that rustls does not take are passed over, as long as one remains.
fn roots(pem: &str) -> Result<RootCertStore> {
    let certs = pki::load_certs(pem).map_err(|e| Error::usage(format!("CA certificates: {e}")))?;
    let mut store = RootCertStore::empty();
    let (added, _passed_over) = store.add_parsable_certificates(certs);
    if added == 0 {
        return Err(Error::usage(
            "CA certificates: none of them can be used as an authority",
        ));
    }
    Ok(store)
}

fn system_bundle() -> Result<String> {
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let paths = named
        .iter()
        .map(std::path::PathBuf::as_path)
        .chain(BUNDLES.iter().map(Path::new));
    for path in paths {
        if let Some(text) = crate::files::read(path)? {
            return Ok(text);
        }
    }
    Err(Error::failed("no bundle of trusted authorities on this machine")
        .hint("name the authority of the installation with --ca-file, or set SSL_CERT_FILE"))
}

/// Takes every certificate. Signatures are still checked: the peer must hold the key of what it shows.
#[derive(Debug)]
struct NoVerifier {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_certificates_is_named_as_such() {
        for text in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let error = client_config(&Trust::Pinned(text.into())).unwrap_err();
            assert!(error.to_string().starts_with("CA certificates"), "{error}");
        }
        assert!(client_config(&Trust::Anybody).is_ok());
    }
}
