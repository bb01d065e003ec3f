//! A real OpenID provider as a process of its own, and a browser that does what people do there. Tests of other crates
//! include this file too.
#![allow(dead_code, reason = "not every test uses every part")]

use bytes::Bytes;
use hanse_api::intent::KeyPair;
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::{Ca, LeafSpec, load_certs};
use http::response::Parts;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_rustls::TlsConnector;

/// Secret of the client: a canary that no answer and no page may hold.
pub const SECRET: &str = "canary-client-secret-0123456789abcdef";
/// Longest wait for the provider: a busy machine takes its time to start it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder that `cargo xtask test` installed the provider in. Where there is none, tests are left out, but not in CI.
fn modules() -> Option<PathBuf> {
    let given = std::env::var_os("HANSE_OIDC_PROVIDER").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cached = cache.map(|c| c.join("hanse/oidc-provider/current"));
    let found = given
        .or(cached)
        .filter(|dir| dir.join("node_modules/oidc-provider").is_dir());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "there is no oidc-provider: `cargo xtask test` installs it"
        );
        eprintln!("left out: there is no oidc-provider; `cargo xtask test` installs it, where there is npm");
    }
    found
}

/// An authority that nobody knows of yet.
pub fn authority() -> Ca {
    Ca::generate("tests", 1, SystemClock::shared().wall()).unwrap()
}

/// A certificate of an authority for 127.0.0.1.
pub fn leaf(ca: &Ca) -> KeyPair {
    let clock = SystemClock::shared();
    let spec = LeafSpec {
        ips: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        days: 1,
        ..Default::default()
    };
    ca.issue(&spec, clock.wall()).unwrap()
}

/// `oidc-provider` as a process of its own.
pub struct RealProvider {
    pub issuer: String,
    pub ca: String,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _home: tempfile::TempDir,
}

impl RealProvider {
    /// Starts one that knows `accounts`; with `conform`, claims are in the user info only, as the specification has it.
    pub async fn start(redirects: &[String], accounts: Value, conform: bool) -> Option<Self> {
        let modules = modules()?;
        let authority = authority();
        let leaf = leaf(&authority);
        let home = tempfile::tempdir().unwrap();
        let config = json!({
            "cert": leaf.cert, "key": leaf.key, "redirects": redirects, "secret": SECRET, "accounts": accounts,
            "conform": conform,
        });
        let file = home.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut child = Command::new("node")
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../gateway/tests/oidc-provider/provider.mjs"
            ))
            .arg(&file)
            .env("HANSE_OIDC_PROVIDER", modules)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut provider = Self {
            issuer: String::new(),
            ca: authority.cert_pem().to_owned(),
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
            _home: home,
        };
        let port = provider.said("listening ").await;
        provider.issuer = format!("https://127.0.0.1:{port}");
        Some(provider)
    }

    async fn said(&mut self, start: &str) -> String {
        let line = async {
            loop {
                let line = self.output.next_line().await.unwrap().expect("the provider goes on");
                if let Some(rest) = line.strip_prefix(start) {
                    return rest.to_owned();
                }
            }
        };
        tokio::time::timeout(PATIENCE, line)
            .await
            .expect("the provider answers in time")
    }

    /// Signs with new keys from now on.
    pub async fn rotate(&mut self) {
        self.input.write_all(b"rotate\n").await.unwrap();
        self.said("rotated").await;
    }

    /// Is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// What the browser sees in the end.
#[derive(Debug)]
pub struct Page {
    pub url: String,
    pub code: StatusCode,
    pub text: String,
}

impl Page {
    /// A parameter of the address.
    pub fn parameter(&self, name: &str) -> Option<String> {
        parameter(&self.url, name)
    }

    /// What stands between `from` and `to`.
    pub fn between(&self, from: &str, to: &str) -> String {
        let (_, rest) = self
            .text
            .split_once(from)
            .unwrap_or_else(|| panic!("no {from:?} in {self:?}"));
        rest.split_once(to).unwrap().0.replace("&amp;", "&")
    }
}

/// A parameter of an address, decoded as far as tests need it.
pub fn parameter(url: &str, name: &str) -> Option<String> {
    let query = url.split_once('?')?.1;
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.replace("%3A", ":").replace("%2F", "/"))
}

/// A browser: cookies by origin, redirects, forms. It goes only where a server of the test is.
#[derive(Default)]
pub struct Browser {
    cookies: BTreeMap<String, BTreeMap<String, String>>,
    authorities: BTreeMap<String, String>,
}

impl Browser {
    /// Knows the origin `url`, whose certificate comes from `ca`.
    pub fn knows(mut self, url: &str, ca: &str) -> Self {
        self.authorities.insert(url.to_owned(), ca.to_owned());
        self
    }

    /// Goes to `url` no more; its authority is given back.
    pub fn forget(&mut self, url: &str) -> String {
        self.authorities.remove(url).unwrap()
    }

    pub async fn get(&mut self, url: &str) -> Page {
        self.go("GET", url, String::new()).await
    }

    pub async fn post(&mut self, url: &str, form: &str) -> Page {
        self.go("POST", url, form.to_owned()).await
    }

    /// One exchange, without following anything.
    pub async fn step(&mut self, method: &str, url: &str, body: &str) -> (StatusCode, HeaderMap, String) {
        let (origin, path) = split(url);
        let ca = self.authorities.get(origin).expect("a known origin").clone();
        let host: SocketAddr = origin.trim_start_matches("https://").parse().unwrap();
        let cookies: Vec<String> = self
            .cookies
            .get(origin)
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut request = Request::new(Full::new(Bytes::from(body.to_owned())));
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in [
            ("host", host.to_string()),
            ("cookie", cookies.join("; ")),
            ("content-type", "application/x-www-form-urlencoded".to_owned()),
            ("accept", "text/html".to_owned()),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (head, text) = tokio::time::timeout(PATIENCE, exchange(host, &ca, request))
            .await
            .unwrap_or_else(|_| panic!("no answer of {origin}{path}"));
        let jar = self.cookies.entry(origin.to_owned()).or_default();
        for cookie in head.headers.get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if value.is_empty() {
                jar.remove(name);
            } else {
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
        (head.status, head.headers, text)
    }

    async fn go(&mut self, method: &str, url: &str, mut body: String) -> Page {
        let (mut method, mut url) = (method.to_owned(), url.to_owned());
        for _ in 0..20 {
            if !self.authorities.contains_key(split(&url).0) {
                // Another program waits there.
                return Page {
                    url,
                    code: StatusCode::OK,
                    text: String::new(),
                };
            }
            let (code, headers, text) = self.step(&method, &url, &body).await;
            assert!(!text.contains(SECRET), "the client's secret is shown");
            let Some(to) = headers.get("location").filter(|_| code.is_redirection()) else {
                return Page { url, code, text };
            };
            let to = to.to_str().unwrap();
            let to = if to.starts_with('/') {
                format!("{}{to}", split(&url).0)
            } else {
                to.to_owned()
            };
            (url, method, body) = (to, "GET".into(), String::new());
        }
        panic!("too many redirects, the last to {url}");
    }

    /// Presses the button of the login page `url` that names `title`, and logs in at the real provider as `login`.
    pub async fn log_in(&mut self, url: &str, title: &str, login: &str) -> Page {
        let choice = self.get(url).await;
        assert_eq!(choice.code, 200, "{choice:?}");
        let (before, _) = choice
            .text
            .split_once(&format!("\">Log in with {title}<"))
            .unwrap_or_else(|| panic!("no button for {title}: {choice:?}"));
        let href = before.rsplit_once("href=\"").unwrap().1.replace("&amp;", "&");
        let page = self.get(&href).await;
        self.at_provider(page, login).await
    }

    /// Fills in the provider's own forms until it leads elsewhere.
    pub async fn at_provider(&mut self, mut page: Page, login: &str) -> Page {
        for _ in 0..3 {
            if !page.text.contains("name=\"prompt\"") {
                return page;
            }
            let action = page.between("action=\"", "\"");
            let form = if page.text.contains("value=\"login\"") {
                format!("prompt=login&login={login}&password=any")
            } else {
                "prompt=consent".to_owned()
            };
            page = self.post(&action, &form).await;
        }
        page
    }

    /// Puts a cookie back, as somebody would who kept a copy.
    pub fn cookies(&self, origin: &str) -> BTreeMap<String, String> {
        self.cookies.get(origin).cloned().unwrap_or_default()
    }

    pub fn set_cookies(&mut self, origin: &str, cookies: BTreeMap<String, String>) {
        self.cookies.insert(origin.to_owned(), cookies);
    }
}

/// Origin and the rest.
fn split(url: &str) -> (&str, &str) {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..]
        .find(['/', '?'])
        .map_or((url, "/"), |at| url.split_at(start + at))
}

/// One request over a connection of its own.
pub async fn exchange(host: SocketAddr, ca: &str, request: Request<Full<Bytes>>) -> (Parts, String) {
    let mut roots = RootCertStore::empty();
    for cert in load_certs(ca).unwrap() {
        roots.add(cert).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(host).await.unwrap();
    let tls = TlsConnector::from(Arc::new(config));
    let stream = tls.connect(host.ip().into(), stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head, String::from_utf8_lossy(&bytes).into_owned())
}
