//! Enrolment of a new agent, or of a new server: a one-time token and a certificate request against a certificate.
//!
//! The newcomer has no certificate yet and knows of the system only the checksum of its authority, which is part of the token. It
//! therefore checks the server by that, and sends the token only after. Its key never leaves it.

use crate::api::{Admitted, Enrolled, ServerEvents};
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::reader::FrameReader;
use crate::exchange::writer::FrameWriter;
use crate::frame::{Grammar, Kind};
use crate::identity::{Credentials, Identity};
use crate::quic::{self, Conn};
use crate::settings::Settings;
use crate::wire::{self, EnrolAnswer, EnrolRequest};
use bytes::Bytes;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki;
use std::fmt;
use std::time::Duration;

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
    let request = request(token, "agent", key_pem, Bytes::new())?;
    let answer = exchange(address, token, request, settings, (settings.handshake, clock)).await?;
    check(&answer, token, key_pem, &Identity::Agent(answer.cluster.clone()))?;
    Ok(Enrolled {
        cert_pem: answer.cert_pem,
        ca_pem: answer.ca_pem,
        cluster: answer.cluster,
    })
}

/// A server that wants to join.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// Its name.
    pub name: String,
    /// What else it says of itself.
    pub about: Bytes,
}

/// Joins at the server at `address` as a server of its own, as [`enrol`] does as an agent. The members change before the answer
/// comes, which may take as long as `limit`.
pub async fn join(
    address: &str,
    token: &EnrolmentToken,
    key_pem: &str,
    newcomer: &Newcomer,
    settings: &Settings,
    (limit, clock): (Duration, &SharedClock),
) -> Result<Admitted, TunnelError> {
    let request = request(token, "server", key_pem, newcomer.about.clone())?;
    let answer = exchange(address, token, request, settings, (limit, clock)).await?;
    check(&answer, token, key_pem, &Identity::Server(newcomer.name.clone()))?;
    Ok(Admitted {
        cert_pem: answer.cert_pem,
        ca_pem: answer.ca_pem,
        name: answer.server,
        place: answer.place,
    })
}

fn request(
    token: &EnrolmentToken,
    common_name: &str,
    key_pem: &str,
    newcomer: Bytes,
) -> Result<EnrolRequest, TunnelError> {
    let csr_pem = pki::csr_for_key(common_name, key_pem)
        .map_err(|error| TunnelError::credentials("making a certificate request")(error.to_string()))?;
    Ok(EnrolRequest {
        token: token.text().to_owned(),
        csr_pem,
        newcomer,
    })
}

async fn exchange(
    address: &str,
    token: &EnrolmentToken,
    request: EnrolRequest,
    settings: &Settings,
    (limit, clock): (Duration, &SharedClock),
) -> Result<EnrolAnswer, TunnelError> {
    // An idle connection must outlive the wait for the answer.
    let settings = &Settings {
        handshake: settings.handshake.max(limit),
        ..settings.clone()
    };
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
    let answer = timeout(&**clock, limit, ask(&conn, &request)).await;
    conn.close(Code::None, "enrolment is over");
    let answer = answer.map_err(TunnelError::deadline("the server's answer to the enrolment"))??;
    if !answer.refusal.is_empty() {
        return Err(TunnelError::EnrolmentRefused { fault: answer.refusal });
    }
    Ok(answer)
}

async fn ask(conn: &Conn, request: &EnrolRequest) -> Result<EnrolAnswer, TunnelError> {
    let (send, recv) = conn.open(0).await?;
    let mut writer = FrameWriter::new(send, conn.peer());
    let mut reader = FrameReader::new(recv, Grammar::Enrol, conn.peer(), Code::Cancelled);
    wire::put(Kind::EnrolRequest, request, writer.buffer())?;
    writer.finish().await?;
    let (_, bytes) = reader.message(&[Kind::EnrolAnswer]).await?;
    wire::read(Kind::EnrolAnswer, bytes)
}

/// Whether what came back is of the pinned authority, for this key, and names whom it should.
fn check(answer: &EnrolAnswer, token: &EnrolmentToken, key_pem: &str, wanted: &Identity) -> Result<(), TunnelError> {
    let fault = |fault: &str| TunnelError::Identity { fault: fault.into() };
    let credentials = Credentials::from_pem(&answer.cert_pem, key_pem, &answer.ca_pem)?;
    if pki::sha256_hex(&credentials.ca) != token.ca_pin() {
        return Err(fault("the server answered with another authority than the token names"));
    }
    if credentials.identity()? != *wanted {
        return Err(TunnelError::Identity {
            fault: format!("the issued certificate does not name {wanted}"),
        });
    }
    if !credentials.key_fits() {
        return Err(fault("the issued certificate is for another key"));
    }
    Ok(())
}

/// The server's end: one exchange. `limit` bounds what the stranger does; how long the decision takes is the server's own affair.
pub(crate) async fn serve(
    conn: &Conn,
    events: &dyn ServerEvents,
    (limit, clock): (Duration, &SharedClock),
) -> Result<(), TunnelError> {
    let peer = conn.peer();
    let asking = async {
        let ((send, recv), guard) = conn.accept(0).await?;
        let mut reader = FrameReader::new(recv, Grammar::Enrol, peer, Code::None);
        let (_, bytes) = reader.message(&[Kind::EnrolRequest]).await?;
        let request: EnrolRequest = wire::read(Kind::EnrolRequest, bytes)?;
        Ok((request, FrameWriter::new(send, peer), guard))
    };
    let asked = timeout(&**clock, limit, asking).await;
    let (request, mut writer, _guard) = asked.map_err(TunnelError::deadline("an enrolment"))??;
    let answer = match decide(&request, events).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::warn!(peer, refusal, "an enrolment was refused");
            EnrolAnswer {
                refusal,
                ..Default::default()
            }
        }
    };
    wire::put(Kind::EnrolAnswer, &answer, writer.buffer())?;
    let telling = async {
        writer.finish().await?;
        // The connection must not be closed before the answer has arrived.
        writer.stopped().await;
        Ok(())
    };
    let told = timeout(&**clock, limit, telling).await;
    told.map_err(TunnelError::deadline("an enrolment"))?
}

async fn decide(request: &EnrolRequest, events: &dyn ServerEvents) -> Result<EnrolAnswer, String> {
    let token = EnrolmentToken::parse(&request.token).map_err(|error| error.to_string())?;
    if request.newcomer.is_empty() {
        let enrolled = events.enrol(token.text(), &request.csr_pem).await?;
        return Ok(EnrolAnswer {
            cert_pem: enrolled.cert_pem,
            ca_pem: enrolled.ca_pem,
            cluster: enrolled.cluster,
            ..Default::default()
        });
    }
    let newcomer = request.newcomer.clone();
    let admitted = events.admit(token.text(), &request.csr_pem, newcomer).await?;
    Ok(EnrolAnswer {
        cert_pem: admitted.cert_pem,
        ca_pem: admitted.ca_pem,
        server: admitted.name,
        place: admitted.place,
        ..Default::default()
    })
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
