//! Hanse as OpenID provider, used by a real relying party (the library that Hanse itself uses as one), and by hostile ones.

use crate::oidc_world::{Ahead, Browser, Front, Page, RealProvider, exchange, settings};
use crate::world::{API, World};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hanse_api::kinds::{OIDC_CLIENTS, OIDC_GRANTS, OIDC_KEYS, TEAMS};
use hanse_state::objects::Page as Objects;
use http_body_util::Full;
use openidconnect::core::{CoreAuthenticationFlow, CoreClient, CoreProviderMetadata, CoreUserInfoClaims};
use openidconnect::{
    AccessTokenHash, AsyncHttpClient, AuthorizationCode, ClientId, ClientSecret, CsrfToken, HttpRequest, HttpResponse,
    IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken, Scope,
    TokenResponse,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Where the client is: nobody is there, the browser stops before it.
const REDIRECT: &str = "https://rp.example/cb";
/// Its secret: a canary that nothing may hold.
const RP_SECRET: &str = "canary-rp-secret-0123456789-abcdef";
/// RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// The connection of a relying party.
struct Http {
    ca: String,
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = std::io::Error;
    type Future = BoxFuture<'c, Result<HttpResponse, std::io::Error>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        let host: SocketAddr = request.uri().authority().unwrap().as_str().parse().unwrap();
        let (mut head, body) = request.into_parts();
        head.headers.insert("host", host.to_string().parse().unwrap());
        head.uri = head.uri.path_and_query().unwrap().as_str().parse().unwrap();
        let request = http::Request::from_parts(head, Full::new(body.into()));
        async move {
            let (head, text) = exchange(host, &self.ca, request).await;
            Ok(HttpResponse::from_parts(head, text.into_bytes()))
        }
        .boxed()
    }
}

/// Hanse between a real provider and its own clients.
struct Issuer {
    world: World,
    clock: Arc<Ahead>,
    browser: Browser,
    url: String,
    _provider: RealProvider,
}

impl Issuer {
    /// With the clients `grafana` and `other`, which have the same secret. None where there is no provider to be had.
    async fn start() -> Option<Self> {
        let (front, clock) = (Front::bind().await, Ahead::new());
        let (url, redirects) = (front.url.clone(), [front.callback("corp")]);
        let accounts = json!({
            "ann-1": { "preferred_username": "ann", "name": "Ann Lee", "email": "ann@corp.example",
                       "email_verified": true, "groups": ["devs"] },
        });
        let provider = RealProvider::start(&redirects, accounts, true).await?;
        let settings = settings("corp", &provider.issuer, &json!({}));
        let issuers = vec![(settings, provider.ca.as_str())];
        let (world, _) = front.serve_by(issuers, clock.clone(), 90 * DAY).await;
        let browser = Browser::default()
            .knows(&url, &world.ca_pem)
            .knows(&provider.issuer, &provider.ca);
        for name in ["grafana", "other"] {
            let spec = json!({ "clientSecret": RP_SECRET, "redirectURIs": [REDIRECT] });
            let made = world
                .admin()
                .post(
                    &format!("{API}/oidcclients"),
                    &json!({ "metadata": { "name": name }, "spec": spec }),
                )
                .await;
            assert_eq!(made.good()["spec"]["clientId"], name);
            let hidden = made.good()["spec"]["clientSecretSha256"].is_null() && !made.text.contains(RP_SECRET);
            assert!(hidden, "{}", made.text);
        }
        Some(Self {
            world,
            clock,
            browser,
            url,
            _provider: provider,
        })
    }

    /// Where a client leads people, with `more` over what is good; an empty text takes a parameter away.
    fn address(&self, more: &[(&str, &str)]) -> String {
        let good = [
            ("client_id", "grafana"),
            ("redirect_uri", "https%3A%2F%2Frp.example%2Fcb"),
            ("response_type", "code"),
            ("scope", "openid%20groups%20offline_access"),
            ("state", "s1"),
            ("nonce", "n1"),
            ("code_challenge_method", "S256"),
            ("code_challenge", CHALLENGE),
        ];
        let value = |name, good| more.iter().find(|(n, _)| *n == name).map_or(good, |(_, value)| *value);
        let pairs = good.map(|(name, good)| (name, value(name, good)));
        let extra = more.iter().filter(|(n, _)| good.iter().all(|(name, _)| name != n));
        let all: Vec<String> = pairs
            .iter()
            .chain(extra)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        format!("{}/oidc/authorize?{}", self.url, all.join("&"))
    }

    /// Lets ann log in at what is at `address`.
    async fn log_in(&mut self, address: &str) -> Page {
        let page = self.browser.get(address).await;
        self.browser.at_provider(page, "ann-1").await
    }

    /// A code for grafana.
    async fn code(&mut self) -> String {
        let page = self.log_in(&self.address(&[])).await;
        assert_eq!(page.parameter("state").as_deref(), Some("s1"), "{page:?}");
        page.parameter("code").unwrap()
    }

    /// Asks an endpoint as a client.
    async fn post(&self, endpoint: &str, client: &str, form: &str) -> (u16, Value) {
        let nobody = self.world.client(None);
        let basic = format!("Basic {}", STANDARD.encode(client));
        let headers = [
            ("authorization", basic.as_str()),
            ("content-type", "application/x-www-form-urlencoded"),
        ];
        let request = nobody.request("POST", &format!("/oidc/{endpoint}"), &headers, form.to_owned());
        let answer = nobody.send(request).await;
        (answer.code.as_u16(), answer.json())
    }

    async fn token(&self, form: &str) -> (u16, Value) {
        self.post("token", &format!("grafana:{RP_SECRET}"), form).await
    }

    /// Tokens for a new login.
    async fn tokens(&mut self) -> Value {
        let code = self.code().await;
        let (status, tokens) = self.token(&for_code(&code)).await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    }

    async fn refresh(&self, tokens: &Value) -> (u16, Value) {
        let token = text(tokens, "refresh_token");
        self.token(&format!("grant_type=refresh_token&refresh_token={token}"))
            .await
    }

    async fn user_info(&self, tokens: &Value) -> (u16, Value) {
        let bearer = self.world.client(Some(text(tokens, "access_token").to_owned()));
        let answer = bearer.get("/oidc/userinfo").await;
        (answer.code.as_u16(), answer.json())
    }

    async fn keys(&self) -> Vec<String> {
        let keys = self.world.client(None).get("/oidc/jwks").await.good();
        let kid = |key: &Value| key["kid"].as_str().unwrap().to_owned();
        keys["keys"].as_array().unwrap().iter().map(kid).collect()
    }
}

fn for_code(code: &str) -> String {
    format!("grant_type=authorization_code&code={code}&redirect_uri={REDIRECT}&code_verifier={VERIFIER}")
}

#[track_caller]
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field}: {value}"))
}

fn part(token: &str, at: usize) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(at).unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[track_caller]
fn denied((status, body): (u16, Value), code: u16, error: &str) {
    assert_eq!((status, &body["error"]), (code, &json!(error)), "{body}");
}

#[tokio::test]
async fn a_real_relying_party_logs_people_in_and_renews_their_logins() {
    let Some(mut issuer) = Issuer::start().await else {
        return;
    };
    let teams = json!({ "groups": ["corp:devs"] });
    issuer.world.put(&TEAMS, "", "builders", teams).await;
    let http = Http {
        ca: issuer.world.ca_pem.clone(),
    };
    let name = IssuerUrl::new(format!("{}/oidc", issuer.url)).unwrap();
    let metadata = CoreProviderMetadata::discover_async(name.clone(), &http).await.unwrap();
    let (id, secret) = (ClientId::new("grafana".into()), ClientSecret::new(RP_SECRET.into()));
    let client = CoreClient::from_provider_metadata(metadata, id, Some(secret))
        .set_redirect_uri(RedirectUrl::new(REDIRECT.into()).unwrap());
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let (address, state, nonce) = client
        .authorize_url(
            CoreAuthenticationFlow::AuthorizationCode,
            CsrfToken::new_random,
            Nonce::new_random,
        )
        .add_scopes(["profile", "email", "groups", "offline_access"].map(|s| Scope::new(s.into())))
        .set_pkce_challenge(challenge)
        .url();
    let page = issuer.log_in(address.as_str()).await;
    assert!(page.url.starts_with(REDIRECT), "{page:?}");
    assert_eq!(page.parameter("state").as_ref(), Some(state.secret()));
    assert_eq!(page.parameter("iss").as_deref(), Some(name.as_str()));
    let code = AuthorizationCode::new(page.parameter("code").unwrap());
    let verifier = PkceCodeVerifier::new(verifier.into_secret());
    let answer = client.exchange_code(code).unwrap().set_pkce_verifier(verifier);
    let answer = answer.request_async(&http).await.unwrap();
    let (token, check) = (answer.id_token().unwrap(), client.id_token_verifier());
    let claims = token.claims(&check, &nonce).unwrap();
    let (alg, key) = (token.signing_alg().unwrap(), token.signing_key(&check).unwrap());
    let hash = AccessTokenHash::from_token(answer.access_token(), alg, key).unwrap();
    assert_eq!(claims.access_token_hash(), Some(&hash));
    assert_eq!(claims.preferred_username().unwrap().as_str(), "ann");
    assert_eq!(claims.email().unwrap().as_str(), "ann@corp.example");
    assert_eq!(
        part(&token.to_string(), 1)["groups"],
        json!(["corp:devs", "loft:team:builders"])
    );
    let info = client.user_info(answer.access_token().clone(), Some(claims.subject().clone()));
    let info: CoreUserInfoClaims = info.unwrap().request_async(&http).await.unwrap();
    assert_eq!(info.preferred_username().unwrap().as_str(), "ann");
    let renewed = RefreshToken::new(answer.refresh_token().unwrap().secret().clone());
    let renewed = client.exchange_refresh_token(&renewed).unwrap();
    let renewed = renewed.request_async(&http).await.unwrap();
    let again = renewed
        .id_token()
        .unwrap()
        .claims(&check, |_: Option<&Nonce>| Ok(()))
        .unwrap();
    assert_eq!(again.subject(), claims.subject());
    assert_ne!(
        renewed.refresh_token().unwrap().secret(),
        answer.refresh_token().unwrap().secret()
    );
    for kind in [&OIDC_CLIENTS, &OIDC_GRANTS, &OIDC_KEYS] {
        for stored in issuer
            .world
            .objects
            .list(kind, None, Objects::default())
            .await
            .unwrap()
            .items
        {
            let text = String::from_utf8_lossy(&stored.value).into_owned();
            assert!(!text.contains(RP_SECRET) && !text.contains("PRIVATE"), "{text}");
        }
    }
}

#[tokio::test]
async fn nobody_is_led_anywhere_but_to_the_client_and_only_by_what_is_safe() {
    let Some(mut issuer) = Issuer::start().await else {
        return;
    };
    for more in [
        ("client_id", "nobody"),
        ("client_id", "..%2Fgrafana"),
        ("client_id", ""),
        ("redirect_uri", "https%3A%2F%2Fevil.example%2Fcb"),
        ("redirect_uri", "https%3A%2F%2Frp.example%2Fcb%2F"),
        ("redirect_uri", "https%3A%2F%2Frp.example%2Fcb%3Fa"),
        ("redirect_uri", ""),
        ("state", "a&state=b"),
    ] {
        let page = issuer.browser.get(&issuer.address(&[more])).await;
        assert!(
            page.code == 400 && page.url.starts_with(&issuer.url),
            "{more:?} {page:?}"
        );
    }
    for (more, error) in [
        (("code_challenge", ""), "invalid_request"),
        (("code_challenge_method", ""), "invalid_request"),
        (("code_challenge_method", "plain"), "invalid_request"),
        (("response_type", "token"), "unsupported_response_type"),
        (("scope", "groups"), "invalid_scope"),
        (("prompt", "none"), "login_required"),
        (("request", "x"), "request_not_supported"),
    ] {
        let page = issuer.browser.get(&issuer.address(&[more])).await;
        let said = ["error", "state"].map(|name| page.parameter(name).unwrap_or_default());
        assert!(page.url.starts_with(REDIRECT), "{more:?} {page:?}");
        assert_eq!(said, [error, "s1"], "{more:?}");
        assert!(page.parameter("code").is_none());
    }
    // What the client asked for goes through the browser sealed: changed, it is nothing.
    let (_, headers, _) = issuer.browser.step("GET", &issuer.address(&[]), "").await;
    let way = headers["location"].to_str().unwrap().to_owned();
    let changed = format!("{}A{}", &way[..way.len() - 20], &way[way.len() - 19..]);
    let changed = if changed == way { format!("{way}B") } else { changed };
    let page = issuer.browser.get(&changed).await;
    assert!(page.code == 403 && page.text.contains("Login failed"), "{page:?}");
    // A client whose address was taken away meanwhile gets nobody.
    let page = issuer.browser.get(&way).await;
    let spec = json!({ "spec": { "redirectURIs": ["https://rp.example/other"] } });
    let client = format!("{API}/oidcclients/grafana");
    issuer.world.admin().merge(&client, &spec).await.good();
    let page = issuer.browser.at_provider(page, "ann-1").await;
    assert!(page.code == 400 && page.url.starts_with(&issuer.url), "{page:?}");
}

#[tokio::test]
async fn a_code_is_good_once_for_who_asked_and_not_for_long() {
    let Some(mut issuer) = Issuer::start().await else {
        return;
    };
    let code = issuer.code().await;
    let good = for_code(&code);
    let grafana = format!("grafana:{RP_SECRET}");
    let cases = [
        (
            "other client",
            format!("other:{RP_SECRET}"),
            good.clone(),
            400,
            "invalid_grant",
        ),
        (
            "no such client",
            format!("nobody:{RP_SECRET}"),
            good.clone(),
            401,
            "invalid_client",
        ),
        (
            "wrong secret",
            format!("grafana:x{RP_SECRET}"),
            good.clone(),
            401,
            "invalid_client",
        ),
        ("no secret", "grafana:".to_owned(), good.clone(), 401, "invalid_client"),
        (
            "no verifier",
            grafana.clone(),
            good.replace(VERIFIER, ""),
            400,
            "invalid_grant",
        ),
        (
            "the challenge",
            grafana.clone(),
            good.replace(VERIFIER, CHALLENGE),
            400,
            "invalid_grant",
        ),
        (
            "other address",
            grafana.clone(),
            good.replace("/cb", "/other"),
            400,
            "invalid_grant",
        ),
        (
            "no address",
            grafana.clone(),
            good.replace(REDIRECT, ""),
            400,
            "invalid_grant",
        ),
        (
            "altered",
            grafana.clone(),
            good.replacen("code=", "code=A", 1),
            400,
            "invalid_grant",
        ),
        (
            "twice in a form",
            grafana.clone(),
            format!("{good}&code=x"),
            400,
            "invalid_request",
        ),
        (
            "other type",
            grafana.clone(),
            good.replace("authorization_code", "password"),
            400,
            "unsupported_grant_type",
        ),
        (
            "as refresh token",
            grafana,
            format!("grant_type=refresh_token&refresh_token={code}"),
            400,
            "invalid_grant",
        ),
    ];
    for (what, client, form, status, error) in cases {
        let answer = issuer.post("token", &client, &form).await;
        assert_eq!(
            (answer.0, &answer.1["error"]),
            (status, &json!(error)),
            "{what}: {}",
            answer.1
        );
    }
    // None of that used it up.
    let (status, tokens) = issuer.token(&good).await;
    assert_eq!(status, 200, "{tokens}");
    assert_eq!(part(text(&tokens, "id_token"), 1)["nonce"], "n1");
    assert_eq!(issuer.user_info(&tokens).await.0, 200);
    // Shown again it is refused, and nobody keeps what came of it.
    denied(issuer.token(&good).await, 400, "invalid_grant");
    denied(issuer.user_info(&tokens).await, 401, "invalid_token");
    denied(issuer.refresh(&tokens).await, 400, "invalid_grant");
    denied(issuer.token(&good).await, 400, "invalid_grant");
    let late = for_code(&issuer.code().await);
    issuer.clock.pass(Duration::from_secs(61));
    denied(issuer.token(&late).await, 400, "invalid_grant");
}

#[tokio::test]
async fn a_login_at_a_client_ends_when_it_is_abused_revoked_or_its_user_goes() {
    let Some(mut issuer) = Issuer::start().await else {
        return;
    };
    // Used twice: both ends are cut, whoever was the thief.
    let first = issuer.tokens().await;
    let (status, second) = issuer.refresh(&first).await;
    assert_eq!(status, 200, "{second}");
    assert_eq!(issuer.user_info(&second).await.1["groups"], json!(["corp:devs"]));
    denied(issuer.refresh(&first).await, 400, "invalid_grant");
    denied(issuer.refresh(&second).await, 400, "invalid_grant");
    denied(issuer.user_info(&second).await, 401, "invalid_token");
    // Its tokens are nothing elsewhere.
    let tokens = issuer.tokens().await;
    for field in ["access_token", "refresh_token", "id_token"] {
        let bearer = issuer.world.client(Some(text(&tokens, field).to_owned()));
        bearer.get(&format!("{API}/projects")).await.fails(401);
    }
    let refresh = text(&tokens, "refresh_token");
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    let other = format!("other:{RP_SECRET}");
    denied(issuer.post("token", &other, &form).await, 400, "invalid_grant");
    // Another client ends nothing; the one that has it does.
    let revoke = format!("token={refresh}");
    assert_eq!(issuer.post("revoke", &other, &revoke).await.0, 200);
    assert_eq!(issuer.user_info(&tokens).await.0, 200);
    let grafana = format!("grafana:{RP_SECRET}");
    assert_eq!(issuer.post("revoke", &grafana, &revoke).await.0, 200);
    denied(issuer.refresh(&tokens).await, 400, "invalid_grant");
    // An administrator ends it.
    let tokens = issuer.tokens().await;
    let grants = "/kubernetes/management/apis/hanse.dev/v1/oidcgrants";
    let all = issuer.world.admin().get(grants).await.good();
    let name = all["items"][0]["metadata"]["name"].as_str().unwrap();
    assert_eq!(all["items"][0]["spec"]["user"], "ann");
    issuer.world.bob().get(grants).await.fails(403);
    issuer.world.admin().delete(&format!("{grants}/{name}")).await.good();
    denied(issuer.refresh(&tokens).await, 400, "invalid_grant");
    // A user who is disabled.
    let tokens = issuer.tokens().await;
    let disabled = json!({ "spec": { "disabled": true } });
    let user = format!("{API}/users/ann");
    issuer.world.admin().merge(&user, &disabled).await.good();
    denied(issuer.refresh(&tokens).await, 400, "invalid_grant");
    denied(issuer.user_info(&tokens).await, 401, "invalid_token");
}

#[tokio::test]
async fn keys_change_with_time_and_are_told_before_they_sign() {
    let Some(mut issuer) = Issuer::start().await else {
        return;
    };
    let kid = |tokens: &Value| text(&part(text(tokens, "id_token"), 0), "kid").to_owned();
    let before = issuer.keys().await;
    assert_eq!(issuer.keys().await, before);
    let tokens = issuer.tokens().await;
    assert_eq!((before.len(), kid(&tokens)), (2, before[0].clone()));
    issuer.clock.pass(30 * DAY);
    let (status, tokens) = issuer.refresh(&tokens).await;
    assert_eq!((status, kid(&tokens)), (200, before[1].clone()), "{tokens}");
    let after = issuer.keys().await;
    assert_eq!(&after[..2], &before[..], "what the old one signed is still good");
    assert_eq!(after.len(), 3);
    // An administrator who does not trust it takes it away, without ever seeing its private half.
    let keys = "/kubernetes/management/apis/hanse.dev/v1/oidckeys";
    let all = issuer.world.admin().get(keys).await;
    assert!(!all.text.contains("sealed"), "{}", all.text);
    let all = all.good();
    let mut all = all["items"].as_array().unwrap().iter();
    let key = all.find(|key| key["spec"]["kid"] == after[1].as_str()).unwrap();
    let name = key["metadata"]["name"].as_str().unwrap();
    issuer.world.admin().delete(&format!("{keys}/{name}")).await.good();
    let (status, tokens) = issuer.refresh(&tokens).await;
    assert!(status == 200 && !after.contains(&kid(&tokens)), "{tokens}");
    assert!(!issuer.keys().await.contains(&after[1]));
    // Old ones do not pile up.
    issuer.clock.pass(30 * DAY);
    issuer.keys().await;
    issuer.clock.pass(30 * DAY);
    issuer.keys().await;
    let stored = issuer.world.objects.list(&OIDC_KEYS, None, Objects::default()).await;
    assert!(stored.unwrap().items.len() <= 4);
}

/// The few that answer without credentials where there are identity providers; the others do not change by that
/// (`access::every_route_needs_credentials`).
#[tokio::test]
async fn of_the_routes_of_logins_each_says_by_itself_who_may() {
    let front = Front::bind().await;
    let url = front.url.clone();
    let settings = settings("corp", "https://127.0.0.1:1", &json!({}));
    let ca = crate::oidc_world::authority();
    let (world, _) = front.serve(vec![(settings, ca.cert_pem())]).await;
    let nobody = world.client(None);
    for (path, codes) in [
        ("/oidc/.well-known/openid-configuration", [200, 405]),
        ("/oidc/jwks", [200, 405]),
        ("/oidc/authorize", [400, 400]),
        ("/oidc/token", [405, 400]),
        ("/oidc/userinfo", [401, 401]),
        ("/oidc/revoke", [405, 400]),
        ("/oidc/introspect", [401, 401]),
        ("/oidc", [401, 401]),
        (
            "/kubernetes/management/apis/management.loft.sh/v1/oidcclients",
            [401, 401],
        ),
    ] {
        for (method, code) in ["GET", "POST"].into_iter().zip(codes) {
            let answer = nobody.send(nobody.request(method, path, &[], "")).await;
            assert_eq!(answer.code.as_u16(), code, "{method} {path}: {}", answer.text);
            assert!(!answer.headers.contains_key("location"), "{path}");
        }
    }
    let told = nobody.get("/oidc/.well-known/openid-configuration").await.good();
    assert_eq!(told["issuer"], format!("{url}/oidc"));
}
