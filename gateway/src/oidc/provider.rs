//! One identity provider: what it says about itself, kept for a while; the exchange of a code; the check of its tokens.

use super::http::{Http, HttpError};
use super::person::{Person, person};
use super::sealed::{Attempt, Then};
use super::settings::OidcIssuer;
use crate::error::GatewayError;
use hanse_api::Timestamp;
use hanse_runtime::clock::SharedClock;
use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreErrorResponseType, CoreGenderClaim, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreRevocableToken,
    CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::url::Url;
use openidconnect::{
    AccessToken, AdditionalClaims, AuthorizationCode, ClaimsVerificationError, Client, ClientId, ClientSecret,
    CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, IdToken, IdTokenClaims,
    IdTokenFields, IdTokenVerifier, IssuerUrl, JsonWebKeySet, Nonce, OAuth2TokenResponse, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError, StandardErrorResponse,
    StandardTokenResponse, TokenResponse, UserInfoClaims,
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// What the provider says about itself is asked for again after this time.
const FRESH: Duration = Duration::from_secs(3600);
/// While it does not answer, what it said last is used for so long: its keys may have been withdrawn since.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Time between two tries of that, whatever asks for it: tokens with made-up keys must not become a load on the provider.
const AGAIN: Duration = Duration::from_secs(5);
/// How far a provider's clock may be ahead.
const SKEW: Duration = Duration::from_secs(60);
/// Signatures that are taken. None with a shared secret, and none at all is none of them.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// All claims that have no field of their own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Claims(Map<String, Value>);

impl AdditionalClaims for Claims {}

type Token = IdToken<Claims, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;
type Answer = StandardTokenResponse<
    IdTokenFields<
        Claims,
        EmptyExtraTokenFields,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    >,
    CoreTokenType,
>;
type OidcClient = Client<
    Claims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// Why somebody does not get in.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The provider cannot be asked now.
    Unreachable(String),
    /// What came from it, or from the browser, is not good.
    Refused(String),
}

/// One provider.
pub(crate) struct Provider {
    pub(crate) settings: OidcIssuer,
    secret: Option<ClientSecret>,
    issuer: IssuerUrl,
    redirect: RedirectUrl,
    http: Http,
    clock: SharedClock,
    kept: RwLock<Option<Arc<Kept>>>,
    /// Held while it is asked, with the time of the last try.
    asking: tokio::sync::Mutex<Option<Duration>>,
}

/// What it said about itself, and when.
struct Kept {
    metadata: CoreProviderMetadata,
    at: Duration,
}

impl Provider {
    pub(super) fn new(
        settings: OidcIssuer,
        secret: Option<String>,
        ca: Option<&str>,
        external_url: &str,
        clock: SharedClock,
    ) -> Result<Self, GatewayError> {
        let fault = |fault: String| GatewayError::IdentityProvider {
            id: settings.id.clone(),
            fault,
        };
        let callback = format!("{external_url}/auth/{}/callback", settings.id);
        Ok(Self {
            issuer: IssuerUrl::new(settings.issuer.clone()).map_err(|e| fault(format!("issuer: {e}")))?,
            redirect: RedirectUrl::new(callback).map_err(|e| fault(format!("external_url: {e}")))?,
            http: Http::new(&settings.id, ca, Arc::clone(&clock))?,
            secret: secret.map(ClientSecret::new),
            clock,
            kept: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
            settings,
        })
    }

    /// Where the browser goes to log in.
    pub(super) async fn address(&self, attempt: &Attempt) -> Result<Url, Refusal> {
        let client = self.client(&*self.known().await?);
        let verifier = PkceCodeVerifier::new(attempt.verifier.clone());
        let (state, nonce) = (attempt.state.clone(), attempt.nonce.clone());
        let mut request = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                || CsrfToken::new(state),
                || Nonce::new(nonce),
            )
            .add_scopes(self.settings.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier));
        if matches!(&attempt.then, Then::Client(ask) if ask.fresh) {
            request = request.add_prompt(CoreAuthPrompt::Login);
        }
        Ok(request.url().0)
    }

    /// Who came back with `code`.
    pub(super) async fn finish(&self, attempt: &Attempt, code: &str) -> Result<Person, Refusal> {
        let client = self.client(&*self.known().await?);
        let request = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|_| self.refused("names no token endpoint"))?
            .set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier.clone()));
        let answer = request
            .request_async(&self.http)
            .await
            .map_err(|e| self.not_exchanged(e))?;
        let token = answer.id_token().ok_or_else(|| self.refused("sent no ID token"))?;
        let claims = self
            .verified(token, &self.settings.client_id, Some(&attempt.nonce))
            .await?;
        let mut claims = flat(&claims)?;
        if let Some(party) = claims.get("azp").and_then(Value::as_str)
            && party != self.settings.client_id
        {
            return Err(self.refused(&format!("gave a token for {party:?} (azp), not for this installation")));
        }
        self.add_user_info(&client, answer.access_token(), &mut claims).await?;
        person(&self.settings, &claims).map_err(Refusal::Refused)
    }

    /// Many providers tell the groups only here. What the ID token says counts more.
    async fn add_user_info(
        &self,
        client: &OidcClient,
        token: &AccessToken,
        claims: &mut Map<String, Value>,
    ) -> Result<(), Refusal> {
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let subject = openidconnect::SubjectIdentifier::new(subject.to_owned());
        let Ok(request) = client.user_info(token.clone(), Some(subject)) else {
            return Ok(());
        };
        let info: UserInfoClaims<Claims, CoreGenderClaim> = request
            .request_async(&self.http)
            .await
            .map_err(|e| self.refused(&format!("gave no user info: {}", hanse_runtime::supervisor::chain(&e))))?;
        if let Ok(Value::Object(info)) = serde_json::to_value(&info) {
            for (name, value) in info {
                claims.entry(name).or_insert(value);
            }
        }
        Ok(())
    }

    /// Who an ID token is about that somebody shows as his credentials, and when it ends.
    pub(crate) async fn bearer(&self, token: &str) -> Result<(Person, Timestamp), Refusal> {
        let token = Token::from_str(token).map_err(|_| Refusal::Refused("no ID token".into()))?;
        let mut last = Refusal::Refused("no audience is configured".into());
        for audience in &self.settings.api_audiences {
            match self.verified(&token, audience, None).await {
                Ok(claims) => {
                    let end = Timestamp::from_millis(claims.expiration().timestamp_millis());
                    let person = person(&self.settings, &flat(&claims)?).map_err(Refusal::Refused)?;
                    return Ok((person, end));
                }
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    /// Checks signature, issuer, audience, times and, when there is one, the nonce.
    async fn verified(
        &self,
        token: &Token,
        audience: &str,
        nonce: Option<&str>,
    ) -> Result<IdTokenClaims<Claims, CoreGenderClaim>, Refusal> {
        let known = self.known().await?;
        let check = |known: &Kept| self.check(token, known.metadata.jwks(), audience, nonce);
        match check(&known) {
            Ok(claims) => Ok(claims),
            // Its keys were changed since they were read, or somebody made one up.
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey | SignatureVerificationError::CryptoError(_),
            )) => {
                let newer = self.newer(known.at).await?;
                check(&newer).map_err(|e| self.not_good(&e))
            }
            Err(error) => Err(self.not_good(&error)),
        }
    }

    fn check(
        &self,
        token: &Token,
        keys: &JsonWebKeySet<CoreJsonWebKey>,
        audience: &str,
        nonce: Option<&str>,
    ) -> Result<IdTokenClaims<Claims, CoreGenderClaim>, ClaimsVerificationError> {
        let now = self.clock.wall();
        let latest = now.plus(SKEW).as_millis();
        let time = UNIX_EPOCH + Duration::from_millis(now.as_millis().unsigned_abs());
        let client = ClientId::new(audience.to_owned());
        let verifier = IdTokenVerifier::new_public_client(client, self.issuer.clone(), keys.clone())
            .set_allowed_algs(ALGORITHMS)
            .set_time_fn(move || time.into())
            .set_issue_time_verifier_fn(move |at| {
                let early = at.timestamp_millis() > latest;
                if early {
                    Err("it was issued in the future".into())
                } else {
                    Ok(())
                }
            });
        let claims = match nonce {
            Some(nonce) => token.claims(&verifier, &Nonce::new(nonce.to_owned())),
            None => token.claims(&verifier, |_: Option<&Nonce>| Ok(())),
        }?;
        let begins = claims.additional_claims().0.get("nbf").and_then(Value::as_f64);
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this age fit an f64")]
        let early = begins.is_some_and(|begins| begins * 1000.0 > latest as f64);
        if early {
            return Err(ClaimsVerificationError::Expired("it holds later only".into()));
        }
        Ok(claims.clone())
    }

    fn client(&self, known: &Kept) -> OidcClient {
        let client = ClientId::new(self.settings.client_id.clone());
        OidcClient::from_provider_metadata(known.metadata.clone(), client, self.secret.clone())
            .set_redirect_uri(self.redirect.clone())
    }

    /// What it says about itself, not much older than [`FRESH`].
    async fn known(&self) -> Result<Arc<Kept>, Refusal> {
        let kept = self.kept.read().clone();
        let age = |kept: &Kept| self.clock.mono().saturating_sub(kept.at);
        match kept {
            Some(kept) if age(&kept) < FRESH => Ok(kept),
            Some(kept) => match self.newer(kept.at).await {
                Err(Refusal::Unreachable(why)) if age(&kept) < STALE => {
                    tracing::warn!(
                        provider = self.settings.id,
                        why,
                        "its keys are not renewed; those of before are used"
                    );
                    Ok(kept)
                }
                other => other,
            },
            None => self.newer(Duration::ZERO).await,
        }
    }

    /// What it says about itself now; what was asked after `than` is good enough.
    async fn newer(&self, than: Duration) -> Result<Arc<Kept>, Refusal> {
        let mut last = self.asking.lock().await;
        if let Some(kept) = self.kept.read().clone().filter(|kept| kept.at > than) {
            return Ok(kept);
        }
        let now = self.clock.mono();
        if last.is_some_and(|last| now.saturating_sub(last) < AGAIN) {
            let kept = self.kept.read().clone();
            return kept
                .filter(|kept| now.saturating_sub(kept.at) < STALE)
                .ok_or_else(|| self.unreachable());
        }
        *last = Some(now);
        let metadata = CoreProviderMetadata::discover_async(self.issuer.clone(), &self.http)
            .await
            .map_err(|e| {
                let why = hanse_runtime::supervisor::chain(&e);
                tracing::warn!(
                    provider = self.settings.id,
                    why,
                    "the identity provider does not say who it is"
                );
                self.unreachable()
            })?;
        let kept = Arc::new(Kept { metadata, at: now });
        *self.kept.write() = Some(Arc::clone(&kept));
        Ok(kept)
    }

    fn unreachable(&self) -> Refusal {
        Refusal::Unreachable(format!(
            "the identity provider {} cannot be asked now; try again, or log in another way: those who are logged in stay so",
            self.settings.title()
        ))
    }

    fn refused(&self, what: &str) -> Refusal {
        Refusal::Refused(format!("the identity provider {} {what}", self.settings.title()))
    }

    fn not_exchanged(
        &self,
        error: RequestTokenError<HttpError, StandardErrorResponse<CoreErrorResponseType>>,
    ) -> Refusal {
        match error {
            RequestTokenError::ServerResponse(said) => {
                tracing::warn!(provider = self.settings.id, code = %said.error(), "a code was refused");
                self.refused("refused the code; it holds once and for a short time: log in again")
            }
            RequestTokenError::Request(error) => {
                tracing::warn!(provider = self.settings.id, %error, "a code cannot be exchanged");
                self.unreachable()
            }
            // The answer itself may hold tokens.
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
                self.refused("gave an answer that cannot be read")
            }
        }
    }

    fn not_good(&self, error: &ClaimsVerificationError) -> Refusal {
        let why = hanse_runtime::supervisor::chain(error);
        tracing::warn!(provider = self.settings.id, why, "an ID token is not good");
        self.refused(&format!("sent an ID token that is not good: {why}"))
    }
}

/// All claims beside each other, by their names.
fn flat(claims: &IdTokenClaims<Claims, CoreGenderClaim>) -> Result<Map<String, Value>, Refusal> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(claims)) => Ok(claims),
        Ok(_) | Err(_) => Err(Refusal::Refused("the claims cannot be read".into())),
    }
}
