//! How a program without a browser of its own gets a key: for a code that only it can use, or by polling while a person
//! lets it in elsewhere (after RFC 8628). Beginning costs the server nothing: what it hands out is sealed.

use super::browser::sealing_failed;
use super::people::{Fault, Known, Spent, commit};
use super::provider::Refusal;
use super::sealed::{Device, Grant, Question, Sealed, open, seal};
use super::{Desk, Place, pages};
use crate::answer;
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::keys::{login_key, new_meta, stored_json};
use crate::body::Response;
use crate::query::Query;
use ::http::StatusCode;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_api::kinds::{LOGIN_GRANTS, USERS};
use hanse_api::resources::{LoginGrant, LoginGrantSpec, User};
use hanse_api::status::{Reason, Status};
use hanse_runtime::pki::sha256_hex;
use hanse_runtime::rng::Rng;
use hanse_state::objects::{ObjectKey, Op, Page};
use serde_json::{Value, json};
use std::time::Duration;

/// Letters of short codes: no vowels, so no words; none that look alike (RFC 8628, 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Letters of a short code, 43 bits. Nothing is kept of a code until somebody says yes to it, so there is nobody to count
/// wrong ones: the code has to be long enough that none is met by chance.
const CODE: usize = 10;
/// Time that a device leaves between two questions.
const INTERVAL: Duration = Duration::from_secs(2);
/// Words given for devices that may wait at once. More are refused until those are used or over.
const MAX_GRANTS: usize = 1000;

fn refused(text: impl Into<String>) -> Fault {
    Fault::Refused(Refusal::Refused(text.into()))
}

/// Whether a text is short and needs no escape anywhere.
pub(super) fn is_plain(text: &str) -> bool {
    text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// A SHA-256 in base64url.
pub(super) fn check_challenge(challenge: &str) -> Result<(), String> {
    if challenge.len() == 43 && is_plain(challenge) {
        Ok(())
    } else {
        Err("challenge: must be a SHA-256 in base64url".into())
    }
}

/// A short code as somebody typed it.
pub(super) fn read_code(typed: &str) -> Option<String> {
    let letters: Vec<u8> = typed
        .bytes()
        .filter(|b| !b" -".contains(b))
        .map(|b| b.to_ascii_uppercase())
        .take(CODE + 1)
        .collect();
    let good = letters.len() == CODE && letters.iter().all(|b| LETTERS.contains(b));
    let text = String::from_utf8(letters).ok().filter(|_| good)?;
    let (head, tail) = text.split_at(CODE / 2);
    Some(format!("{head}-{tail}"))
}

fn new_code(rng: &dyn Rng) -> String {
    let mut letters = String::new();
    while letters.len() < CODE {
        let mut byte = [0];
        rng.fill(&mut byte);
        // 240 is the largest multiple of 20 in a byte: no letter is likelier than another.
        if byte[0] < 240 {
            letters.push(char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]));
        }
    }
    letters.insert(CODE / 2, '-');
    letters
}

fn text(body: &[u8], field: &str) -> Result<String, Fault> {
    let bad = || {
        Fault::Status(Box::new(Status::new(
            Reason::BadRequest,
            format!("the body must be JSON with the text {field:?}"),
        )))
    };
    let value: Value = serde_json::from_slice(body).map_err(|_| bad())?;
    value[field].as_str().map(str::to_owned).ok_or_else(bad)
}

impl Desk<'_> {
    /// Answers a POST.
    pub(super) async fn post(&self, place: &Place, body: &[u8]) -> Result<Response, Fault> {
        match place {
            Place::Exchange => self.exchange(&text(body, "code")?, &text(body, "verifier")?).await,
            Place::DevicePoll => self.poll(&text(body, "deviceCode")?).await,
            Place::DeviceConfirm => self.confirm(&String::from_utf8_lossy(body)).await,
            _ => self.start(),
        }
    }

    /// A key for a code, for the client that asked for it alone.
    async fn exchange(&self, code: &str, verifier: &str) -> Result<Response, Fault> {
        let now = self.backend.clock.wall();
        let bad = || refused("the code is not good, or over: it holds for five minutes, once, where it was asked for");
        let grant: Grant = open(&self.oidc.sealer, now, code).ok_or_else(bad)?;
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
        verify_slices_are_equal(challenge.as_bytes(), grant.challenge.as_bytes()).map_err(|_| bad())?;
        let spent = Spent {
            id: &grant.id,
            expires: grant.expires,
        };
        let known = Known {
            user: grant.user.clone(),
            uid: grant.uid.clone(),
        };
        self.key(&known, Vec::new(), &spent).await
    }

    /// Makes a key for `known` if he may still come in.
    async fn key(&self, known: &Known, more: Vec<Op>, spent: &Spent<'_>) -> Result<Response, Fault> {
        let (make, key) = login_key(self.backend, &known.user, "Login by hanse", self.oidc.session)?;
        let mut ops = vec![still_good(self.backend, known).await?, make];
        ops.extend(more);
        if !commit(self.backend, ops, spent).await? {
            return Err(refused("somebody changed your user at this moment; log in again"));
        }
        let value = json!({ "accessKey": key, "user": known.user });
        Ok(answer::json(StatusCode::OK, &value))
    }

    fn start(&self) -> Result<Response, Fault> {
        let rng = self.backend.rng.as_ref();
        let device = Device {
            code: new_code(rng),
            expires: self.backend.clock.wall().plus(Device::LIFE),
        };
        let sealed = seal(&self.oidc.sealer, rng, &device).ok_or_else(sealing_failed)?;
        let base = &self.oidc.external_url;
        let value = json!({
            "deviceCode": sealed,
            "userCode": device.code,
            "verificationUri": format!("{base}/login/device"),
            "verificationUriComplete": format!("{base}/login?device={}", device.code),
            "expiresIn": Device::LIFE.as_secs(),
            "interval": INTERVAL.as_secs(),
        });
        Ok(answer::json(StatusCode::OK, &value))
    }

    /// The key, once the person said yes; until then 202.
    async fn poll(&self, device: &str) -> Result<Response, Fault> {
        let now = self.backend.clock.wall();
        let over = || refused("the code of this device is over; begin again");
        let device: Device = open(&self.oidc.sealer, now, device).ok_or_else(over)?;
        let place = grant_key(&device.code);
        // As this server knows it: somebody who polls must not be a load on the leader.
        let Some(stored) = self.backend.objects.get_local(&place).await.map_err(|e| failed(&e))? else {
            let value = json!({ "status": "pending", "interval": INTERVAL.as_secs() });
            return Ok(answer::json(StatusCode::ACCEPTED, &value));
        };
        let grant: LoginGrant = serde_json::from_slice(&stored.value).map_err(|_| over())?;
        if grant.spec.expires <= now {
            return Err(over());
        }
        let known = Known {
            user: grant.spec.user,
            uid: grant.spec.user_uid,
        };
        let id = format!("device-{}", place.name);
        let spent = Spent {
            id: &id,
            expires: grant.spec.expires,
        };
        let end = Op::Delete {
            key: place,
            expected: stored.revision,
        };
        self.key(&known, vec![end], &spent).await
    }

    /// The person's yes.
    async fn confirm(&self, form: &str) -> Result<Response, Fault> {
        let now = self.backend.clock.wall();
        let query = Query::parse(form).unwrap_or_default();
        let question: Question = query
            .text("question")
            .and_then(|sealed| open(&self.oidc.sealer, now, sealed))
            .ok_or_else(|| refused("this question is over; log in again"))?;
        let known = Known {
            user: question.user.clone(),
            uid: question.uid.clone(),
        };
        let key = grant_key(&question.code);
        let grant = LoginGrant {
            api_version: LOGIN_GRANTS.api_version(),
            kind: LOGIN_GRANTS.kind.into(),
            metadata: new_meta(self.backend, &key.name),
            spec: LoginGrantSpec {
                user: question.user,
                user_uid: question.uid,
                expires: question.expires,
            },
            status: (),
        };
        let mut ops = self.over().await?;
        ops.push(still_good(self.backend, &known).await?);
        ops.push(Op::Create {
            key,
            value: stored_json(&grant)?,
        });
        let spent = Spent {
            id: &question.id,
            expires: question.expires,
        };
        if commit(self.backend, ops, &spent).await? {
            return Ok(pages::done(Some(&known.user)));
        }
        Err(refused(
            "somebody let this device in already, or changed your user at this moment; begin again at the device",
        ))
    }

    /// What ends words for devices that never came back.
    async fn over(&self) -> Result<Vec<Op>, Fault> {
        let page = Page {
            limit: i64::try_from(MAX_GRANTS).unwrap_or(i64::MAX),
            ..Page::default()
        };
        let list = self
            .backend
            .objects
            .list(&LOGIN_GRANTS, None, page)
            .await
            .map_err(|e| failed(&e))?;
        let now = self.backend.clock.wall();
        let mut ops = Vec::new();
        for stored in &list.items {
            let grant = serde_json::from_slice::<LoginGrant>(&stored.value);
            if grant.is_ok_and(|grant| grant.spec.expires < now) {
                ops.push(Op::Delete {
                    key: ObjectKey::new(&LOGIN_GRANTS, "", &stored.name),
                    expected: stored.revision,
                });
            }
        }
        if list.items.len() >= MAX_GRANTS && ops.is_empty() {
            let why = "too many devices wait at once; try again in some minutes";
            return Err(Box::new(Status::new(Reason::TooManyRequests, why).retry_after(60)).into());
        }
        // A transaction has its bounds too; the others go with the next ones.
        ops.truncate(16);
        Ok(ops)
    }
}

/// The code itself is not kept: nobody who reads the store may answer for a device.
fn grant_key(code: &str) -> ObjectKey {
    let hash = sha256_hex(code.as_bytes());
    ObjectKey::new(&LOGIN_GRANTS, "", &hash[..40])
}

/// Requires that the user is still who he was, and may come in.
pub(super) async fn still_good(backend: &Backend, known: &Known) -> Result<Op, Fault> {
    let key = ObjectKey::new(&USERS, "", &known.user);
    let stored = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
    let gone = || refused(format!("the user {:?} is gone or disabled", known.user));
    let stored = stored.ok_or_else(gone)?;
    let user: User = serde_json::from_slice(&stored.value).map_err(|_| gone())?;
    if user.metadata.uid != known.uid || user.spec.disabled || user.metadata.deletion_timestamp.is_some() {
        return Err(gone());
    }
    Ok(Op::Require {
        key,
        revision: stored.revision,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::rng::SeededRng;

    #[test]
    fn codes_are_read_as_people_type_them() {
        let code = new_code(&SeededRng::new(5));
        for typed in [
            code.clone(),
            code.to_lowercase(),
            code.replace('-', ""),
            code.replace('-', " "),
        ] {
            assert_eq!(read_code(&typed).as_ref(), Some(&code), "{typed}");
        }
        for bad in ["", "BCDFG", "BCDFG-HJKLA", "BCDFG-HJKLMN", "<b>"] {
            assert_eq!(read_code(bad), None, "{bad}");
        }
    }
}
