//! An issuer that says whatever it likes: wrong audience, issuer, signature, times, nonce. Nobody gets in by it.

use crate::oidc_world::{Browser, Front, authority, leaf, parameter, settings};
use crate::world::{API, World};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hanse_api::kinds::{ACCESS_KEYS, IDENTITIES};
use hanse_gateway::tls_config;
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::{load_certs, load_key};
use hanse_state::objects::Page;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An issuer in this process.
struct Issuer {
    url: String,
    ca: String,
    key: EcdsaKeyPair,
    /// What its token endpoint answers.
    token: Mutex<Value>,
    /// What it says about itself, over the truth.
    claims_to_be: Mutex<Option<String>>,
    asked: AtomicUsize,
}

impl Issuer {
    async fn start() -> Arc<Self> {
        let pki = authority();
        let cert = leaf(&pki);
        let tls = tls_config(load_certs(&cert.cert).unwrap(), load_key(&cert.key).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Arc::new(Self {
            url: format!("https://{}", listener.local_addr().unwrap()),
            ca: pki.cert_pem().to_owned(),
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            token: Mutex::default(),
            claims_to_be: Mutex::default(),
            asked: AtomicUsize::new(0),
        });
        let (acceptor, served) = (TlsAcceptor::from(tls), Arc::clone(&issuer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, issuer) = (acceptor.clone(), Arc::clone(&served));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let answer = issuer.answer(request.uri().path());
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    http.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        issuer
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let url = &self.url;
        let value = match path {
            "/.well-known/openid-configuration" => json!({
                "issuer": self.claims_to_be.lock().clone().unwrap_or_else(|| url.clone()),
                "authorization_endpoint": format!("{url}/auth"), "token_endpoint": format!("{url}/token"),
                "jwks_uri": format!("{url}/jwks"), "response_types_supported": ["code"],
                "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256", "none"],
            }),
            "/jwks" => {
                let point = self.key.public_key().as_ref();
                let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
                json!({ "keys": [{ "kty": "EC", "crv": "P-256", "use": "sig", "kid": "1", "alg": "ES256",
                                   "x": number(&point[1..33]), "y": number(&point[33..]) }] })
            }
            _ => self.token.lock().clone(),
        };
        let answer = Response::builder().header("content-type", "application/json");
        answer.body(Full::new(value.to_string().into())).unwrap()
    }

    /// A token with this header and these claims, signed whatever the header says.
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn good_header() -> Value {
    json!({ "alg": "ES256", "kid": "1", "typ": "JWT" })
}

/// Claims that are good, with `more` over them; a null takes one away.
fn claims(issuer: &Issuer, nonce: &str, more: &Value) -> Value {
    let now = SystemClock::shared().wall().as_millis() / 1000;
    let mut claims = json!({
        "iss": issuer.url, "sub": "mallory", "aud": "hanse", "exp": now + 600, "iat": now, "nonce": nonce,
        "preferred_username": "mallory",
    });
    for (key, value) in more.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(key);
        } else {
            claims[key] = value.clone();
        }
    }
    claims
}

async fn evil() -> (World, Arc<Issuer>, Browser, String) {
    let (front, issuer) = (Front::bind().await, Issuer::start().await);
    let url = front.url.clone();
    let (more, other) = (json!({ "api_audiences": ["kubectl"] }), json!({ "client_id": "hanse" }));
    let issuers = vec![
        (settings("evil", &issuer.url, &more), issuer.ca.as_str()),
        (settings("honest", "https://127.0.0.1:1", &other), issuer.ca.as_str()),
    ];
    let (world, _) = front.serve(issuers).await;
    let browser = Browser::default().knows(&url, &world.ca_pem);
    (world, issuer, browser, url)
}

/// Begins a login; gives the state and the nonce that were sent.
async fn begin(browser: &mut Browser, url: &str) -> (String, String) {
    let (code, headers, text) = browser
        .step("GET", &format!("{url}/auth/evil/login?cli=true"), "")
        .await;
    assert_eq!(code, 303, "{text}");
    let to = headers["location"].to_str().unwrap();
    assert!(
        to.contains("code_challenge_method=S256") && !to.contains("canary"),
        "{to}"
    );
    let cookie = headers["set-cookie"].to_str().unwrap();
    for part in ["__Host-", "Secure", "HttpOnly", "SameSite=Lax", "Path=/;"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    (parameter(to, "state").unwrap(), parameter(to, "nonce").unwrap())
}

async fn nobody_came(world: &World) {
    let identities = world.objects.list(&IDENTITIES, None, Page::default()).await.unwrap();
    let keys = world.objects.list(&ACCESS_KEYS, None, Page::default()).await.unwrap();
    assert_eq!((identities.items.len(), keys.items.len()), (0, 2));
}

#[tokio::test]
async fn bad_id_tokens_let_nobody_in() {
    let (world, issuer, mut browser, url) = evil().await;
    let now = SystemClock::shared().wall().as_millis() / 1000;
    let stranger = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let unsigned = |claims: &Value| {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims.to_string()))
    };
    let es = good_header();
    for (what, header, more) in [
        ("another audience", &es, json!({ "aud": "other" })),
        ("a further audience", &es, json!({ "aud": ["hanse", "other"] })),
        ("no audience", &es, json!({ "aud": null })),
        ("another issuer", &es, json!({ "iss": "https://127.0.0.1:1" })),
        (
            "its name with a slash",
            &es,
            json!({ "iss": format!("{}/", issuer.url) }),
        ),
        ("no issuer", &es, json!({ "iss": null })),
        ("expired", &es, json!({ "exp": now - 1 })),
        ("without end", &es, json!({ "exp": null })),
        ("of tomorrow", &es, json!({ "iat": now + 86_400 })),
        ("not before tomorrow", &es, json!({ "nbf": now + 86_400 })),
        ("another nonce", &es, json!({ "nonce": "other" })),
        ("no nonce", &es, json!({ "nonce": null })),
        ("for another party", &es, json!({ "azp": "other" })),
        ("no subject", &es, json!({ "sub": null })),
        ("an empty subject", &es, json!({ "sub": "" })),
        ("unsigned", &json!({ "alg": "none" }), json!({})),
        ("a shared secret", &json!({ "alg": "HS256", "kid": "1" }), json!({})),
        ("another algorithm", &json!({ "alg": "RS256", "kid": "1" }), json!({})),
        ("an unknown key", &json!({ "alg": "ES256", "kid": "2" }), json!({})),
        (
            "a critical extension",
            &json!({ "alg": "ES256", "kid": "1", "crit": ["x"], "x": 1 }),
            json!({}),
        ),
        (
            "an access token",
            &json!({ "alg": "ES256", "kid": "1", "typ": "at+jwt" }),
            json!({}),
        ),
    ] {
        let (state, nonce) = begin(&mut browser, &url).await;
        let token = issuer.sign(header, &claims(&issuer, &nonce, &more));
        *issuer.token.lock() = json!({ "access_token": "x", "token_type": "Bearer", "id_token": token });
        let page = browser
            .get(&format!("{url}/auth/evil/callback?code=c&state={state}"))
            .await;
        assert_eq!(page.code, 403, "{what}: {page:?}");
        assert!(page.text.contains("Login failed"), "{what}: {page:?}");
    }
    for forge in [0, 1, 2] {
        let (state, nonce) = begin(&mut browser, &url).await;
        let all = claims(&issuer, &nonce, &json!({}));
        let token = issuer.sign(&es, &all);
        let (message, _) = token.rsplit_once('.').unwrap();
        let token = match forge {
            0 => unsigned(&all),
            1 => format!("{message}."),
            _ => {
                let signature = stranger.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
                format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
            }
        };
        *issuer.token.lock() = json!({ "access_token": "x", "token_type": "Bearer", "id_token": token });
        let page = browser
            .get(&format!("{url}/auth/evil/callback?code=c&state={state}"))
            .await;
        assert_eq!(page.code, 403, "{forge}: {page:?}");
    }
    nobody_came(&world).await;
}

#[tokio::test]
async fn a_login_is_good_once_in_its_own_browser_and_with_its_own_state() {
    let (world, issuer, mut browser, url) = evil().await;
    let (state, nonce) = begin(&mut browser, &url).await;
    let token = issuer.sign(&good_header(), &claims(&issuer, &nonce, &json!({})));
    *issuer.token.lock() = json!({ "access_token": "x", "token_type": "Bearer", "id_token": token });
    let cookies = browser.cookies(&url);
    let callback = format!("{url}/auth/evil/callback?code=c&state={state}");
    let mut other = Browser::default().knows(&url, &world.ca_pem);
    assert_eq!(other.get(&callback).await.code, 403, "another browser");
    let honest = callback.replace("/auth/evil/", "/auth/honest/");
    for bad in [
        format!("{url}/auth/evil/callback?code=c&state=other"),
        format!("{url}/auth/evil/callback?code=c"),
        format!("{callback}&iss=https%3A%2F%2F127.0.0.1%3A1"),
        honest,
    ] {
        browser.set_cookies(&url, cookies.clone());
        assert_eq!(browser.get(&bad).await.code, 403, "{bad}");
    }
    nobody_came(&world).await;
    let denied = format!("{url}/auth/evil/callback?error=access_denied&error_description=%3Cb%3Eno&state={state}");
    browser.set_cookies(&url, cookies.clone());
    let page = browser.get(&denied).await;
    assert!(page.code == 403 && page.text.contains("&lt;b&gt;no"), "{page:?}");
    browser.set_cookies(&url, cookies.clone());
    let page = browser.get(&callback).await;
    assert!(
        page.url.starts_with("http://localhost:25843/login?key=hak1."),
        "{page:?}"
    );
    // Its issuer would take the code again and again; the login is used up all the same.
    browser.set_cookies(&url, cookies);
    let page = browser.get(&callback).await;
    assert!(page.code == 403 && page.text.contains("was used already"), "{page:?}");
    let keys = world.objects.list(&ACCESS_KEYS, None, Page::default()).await.unwrap();
    assert_eq!(keys.items.len(), 3);
}

#[tokio::test]
async fn bad_bearer_tokens_are_no_credentials_and_made_up_keys_no_load() {
    let (world, issuer, mut browser, url) = evil().await;
    let (state, nonce) = begin(&mut browser, &url).await;
    let token = issuer.sign(&good_header(), &claims(&issuer, &nonce, &json!({})));
    *issuer.token.lock() = json!({ "access_token": "x", "token_type": "Bearer", "id_token": token });
    browser
        .get(&format!("{url}/auth/evil/callback?code=c&state={state}"))
        .await;
    let now = SystemClock::shared().wall().as_millis() / 1000;
    let projects = format!("{API}/projects");
    let bearer = |header: &Value, more: &Value| {
        let mut all = claims(&issuer, "", &json!({ "aud": "kubectl", "nonce": null }));
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        world.client(Some(issuer.sign(header, &all)))
    };
    let es = good_header();
    bearer(&es, &json!({})).get(&projects).await.good();
    for more in [
        // That is for logins, not for the API.
        json!({ "aud": "hanse" }),
        json!({ "aud": ["kubectl", "hanse"] }),
        json!({ "exp": now - 1 }),
        json!({ "nbf": now + 86_400 }),
        json!({ "iss": "https://127.0.0.1:1" }),
        json!({ "sub": "somebody-else" }),
    ] {
        bearer(&es, &more).get(&projects).await.fails(401);
    }
    let clock = SystemClock::shared();
    let (asked, began) = (issuer.asked.load(Ordering::SeqCst), clock.mono());
    for i in 0..50 {
        let made_up = json!({ "alg": "ES256", "kid": format!("k{i}") });
        let code = bearer(&made_up, &json!({})).get(&projects).await.code.as_u16();
        assert!(matches!(code, 401 | 429), "{code}: after some it is told to wait");
    }
    // Two exchanges each time, and five seconds between the times.
    let times = (clock.mono() - began).as_secs() / 5 + 2;
    let more = issuer.asked.load(Ordering::SeqCst) - asked;
    assert!(
        more as u64 <= 2 * times && more < 100,
        "50 made-up keys made {more} requests"
    );
    for header in [json!({ "alg": "none" }), json!({ "alg": "HS256", "kid": "1" })] {
        let code = bearer(&header, &json!({})).get(&projects).await.code.as_u16();
        assert!(matches!(code, 401 | 429), "{code}");
    }
}

#[tokio::test]
async fn an_issuer_that_says_it_is_another_is_none() {
    let (world, issuer, mut browser, url) = evil().await;
    *issuer.claims_to_be.lock() = Some("https://id.example.com".into());
    let page = browser.get(&format!("{url}/auth/evil/login")).await;
    assert!(
        page.code == 503 && page.text.contains("cannot be asked now"),
        "{page:?}"
    );
    nobody_came(&world).await;
}
