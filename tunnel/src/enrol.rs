//! Enrolment of a new agent: a one-time token and a certificate request against a certificate.
//!
//! The agent has no certificate yet and knows of the system only the checksum of its authority, which is part of the token. It
//! therefore checks the server by that, and sends the token only after. Its key never leaves it.

use crate::api::{Enrolled, ServerEvents};
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::reader::FrameReader;
use crate::exchange::writer::FrameWriter;
use crate::frame::{Grammar, Kind};
use crate::identity::{Credentials, Identity};
use crate::quic::{self, Conn, QuicRecv, QuicSend};
use crate::settings::Settings;
use crate::wire::{self, EnrolAnswer, EnrolRequest};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki;
use std::fmt;

/// First word of a token.
const TOKEN_FORM: &str = "het1";
/// Longest part of a token.
const PART_MAX: usize = 128;

/// An enrolment token, `het1.<id>.<secret>.<SHA-256 of the authority's certificate (DER), hex>`.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken {
    text: String,
    ca_pin: String,
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolmentToken")
            .field("ca_pin", &self.ca_pin)
            .finish_non_exhaustive()
    }
}

impl EnrolmentToken {
    /// Reads a token.
    pub fn parse(text: &str) -> Result<Self, TunnelError> {
        let fault = |fault| TunnelError::Token { fault };
        let parts: Vec<&str> = text.trim().split('.').collect();
        let &[form, id, secret, pin] = parts.as_slice() else {
            return Err(fault("it must have four parts"));
        };
        if form != TOKEN_FORM {
            return Err(fault("it does not begin with het1"));
        }
        let plain = |part: &str| {
            (1..=PART_MAX).contains(&part.len())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !plain(id) || !plain(secret) {
            return Err(fault("its id or secret is empty, too long or has bad characters"));
        }
        if pin.len() != 64 || !pin.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(fault("its checksum is not 64 lower-case hex digits"));
        }
        Ok(Self {
            text: text.trim().to_owned(),
            ca_pin: pin.to_owned(),
        })
    }

    /// Puts a token together.
    pub fn compose(id: &str, secret: &str, ca_sha256_hex: &str) -> Result<Self, TunnelError> {
        Self::parse(&format!("{TOKEN_FORM}.{id}.{secret}.{ca_sha256_hex}"))
    }

    /// The whole text. A secret.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The id, which is not secret.
    pub fn id(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or_default()
    }

    /// The secret.
    pub fn secret(&self) -> &str {
        self.text.split('.').nth(2).unwrap_or_default()
    }

    /// SHA-256 of the authority's certificate (DER), in hex.
    pub fn ca_pin(&self) -> &str {
        &self.ca_pin
    }
}

/// Enrols at the server at `address` (host:port) with the key `key_pem` (PKCS#8 PEM, ECDSA P-256). A lost answer may be asked
/// for again with the same key and token.
pub async fn enrol(
    address: &str,
    token: &EnrolmentToken,
    key_pem: &str,
    settings: &Settings,
    clock: &SharedClock,
) -> Result<Enrolled, TunnelError> {
    let csr_pem = pki::csr_for_key("agent", key_pem)
        .map_err(|error| TunnelError::credentials("making a certificate request")(error.to_string()))?;
    let conn = timeout(
        &**clock,
        settings.handshake,
        quic::connect_to_enrol(address, token.ca_pin(), settings),
    )
    .await
    .map_err(|_elapsed| TunnelError::Connect {
        server: address.to_owned(),
        fault: "no answer; check the address and that UDP is not blocked on the way".into(),
    })??;
    let answer = timeout(&**clock, settings.handshake, ask(&conn, token, csr_pem)).await;
    conn.close(Code::None, "enrolment is over");
    let answer = answer.map_err(TunnelError::deadline("the server's answer to the enrolment"))??;
    if !answer.refusal.is_empty() {
        return Err(TunnelError::EnrolmentRefused { fault: answer.refusal });
    }
    let enrolled = Enrolled {
        cert_pem: answer.cert_pem,
        ca_pem: answer.ca_pem,
        cluster: answer.cluster,
    };
    check(&enrolled, token, key_pem)?;
    Ok(enrolled)
}

async fn ask(conn: &Conn, token: &EnrolmentToken, csr_pem: String) -> Result<EnrolAnswer, TunnelError> {
    let (send, recv) = conn.open(0).await?;
    let mut writer = FrameWriter::new(send, conn.peer());
    let mut reader = FrameReader::new(recv, Grammar::Enrol, conn.peer(), Code::Cancelled);
    wire::put(
        Kind::EnrolRequest,
        &EnrolRequest {
            token: token.text().to_owned(),
            csr_pem,
        },
        writer.buffer(),
    )?;
    writer.finish().await?;
    let (_, bytes) = reader.message(&[Kind::EnrolAnswer]).await?;
    wire::read(Kind::EnrolAnswer, bytes)
}

/// Whether what came back is of the pinned authority, for this key, and names the cluster it says.
fn check(enrolled: &Enrolled, token: &EnrolmentToken, key_pem: &str) -> Result<(), TunnelError> {
    let fault = |fault: &str| TunnelError::Identity { fault: fault.into() };
    let credentials = Credentials::from_pem(&enrolled.cert_pem, key_pem, &enrolled.ca_pem)?;
    if pki::sha256_hex(&credentials.ca) != token.ca_pin() {
        return Err(fault("the server answered with another authority than the token names"));
    }
    if credentials.identity()? != Identity::Agent(enrolled.cluster.clone()) {
        return Err(fault(
            "the issued certificate names another cluster than the server says",
        ));
    }
    if !credentials.key_fits() {
        return Err(fault("the issued certificate is for another key"));
    }
    Ok(())
}

/// The server's end: one exchange.
pub(crate) async fn serve(
    (send, recv): (QuicSend, QuicRecv),
    peer: &str,
    events: &dyn ServerEvents,
) -> Result<(), TunnelError> {
    let mut reader = FrameReader::new(recv, Grammar::Enrol, peer, Code::None);
    let mut writer = FrameWriter::new(send, peer);
    let (_, bytes) = reader.message(&[Kind::EnrolRequest]).await?;
    let request: EnrolRequest = wire::read(Kind::EnrolRequest, bytes)?;
    let outcome = match EnrolmentToken::parse(&request.token) {
        Ok(token) => events.enrol(token.text(), &request.csr_pem).await,
        Err(error) => Err(error.to_string()),
    };
    let answer = match outcome {
        Ok(Enrolled {
            cert_pem,
            ca_pem,
            cluster,
        }) => EnrolAnswer {
            cert_pem,
            ca_pem,
            cluster,
            ..Default::default()
        },
        Err(refusal) => {
            tracing::warn!(peer, refusal, "an enrolment was refused");
            EnrolAnswer {
                refusal,
                ..Default::default()
            }
        }
    };
    wire::put(Kind::EnrolAnswer, &answer, writer.buffer())?;
    writer.finish().await?;
    // The connection must not be closed before the answer has arrived.
    writer.stopped().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let pin = "0123456789abcdef".repeat(4);
        let token = EnrolmentToken::compose("id-1", "s_e", &pin).unwrap();
        assert_eq!(
            (token.id(), token.secret(), token.ca_pin()),
            ("id-1", "s_e", pin.as_str())
        );
        assert!(!format!("{token:?}").contains("s_e"));
        let long = "a".repeat(129);
        let upper = pin.to_uppercase();
        for bad in [
            String::new(),
            "het1.a.b".into(),
            format!("het2.a.b.{pin}"),
            format!("het1..b.{pin}"),
            format!("het1.a.{long}.{pin}"),
            format!("het1.a.b c.{pin}"),
            format!("het1.a.b.{upper}"),
            format!("het1.a.b.{pin}0"),
            format!("het1.a.b.c.{pin}"),
        ] {
            assert!(EnrolmentToken::parse(&bad).is_err(), "{bad}");
        }
        assert_eq!(EnrolmentToken::parse(&format!(" {}\n", token.text())).unwrap(), token);
    }
}
