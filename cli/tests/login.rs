//! `hanse login` by an identity provider: a real server with its configuration, a real provider, and a browser that does what
//! people do.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test code"
)]

#[path = "../../gateway/tests/oidc-provider/browser.rs"]
mod browser;
#[allow(dead_code, reason = "only one part is of use here")]
#[path = "support/processes.rs"]
mod processes;

use browser::{Browser, RealProvider, SECRET, authority};
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_runtime::pki::LeafSpec;
use processes::free_ports;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Longest wait for anything: a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

async fn long<F: Future>(what: &str, future: F) -> F::Output {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// One server, and a provider that it knows.
struct Installation {
    url: String,
    ca: String,
    dir: tempfile::TempDir,
    provider: RealProvider,
    server: Child,
}

impl Installation {
    async fn start() -> Option<Self> {
        let ports = free_ports(3);
        let url = format!("https://{}", ports[0]);
        let redirects = [format!("{url}/auth/corp/callback")];
        let accounts = json!({ "ann-1": { "preferred_username": "ann", "groups": ["devs"] } });
        let provider = RealProvider::start(&redirects, accounts, true).await?;
        let (dir, ca) = (tempfile::tempdir().unwrap(), authority());
        let spec = LeafSpec {
            common_name: "eu-1".into(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            uris: vec!["hanse://server/eu-1".into()],
            client: true,
            server: true,
            days: 1,
            ..LeafSpec::default()
        };
        let leaf = ca.issue(&spec, SystemClock::new().wall()).unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let text = [
            format!(
                "name = 'eu-1'\nid = 1\nregion = 'eu'\ndata_dir = '{}'",
                dir.path().join("data").display()
            ),
            format!(
                "[tls]\nca = '{}'\nca_key = '{}'",
                write("ca.pem", ca.cert_pem()),
                write("ca.key", &ca.key_pair().key)
            ),
            format!(
                "cert = '{}'\nkey = '{}'",
                write("cert.pem", &leaf.cert),
                write("cert.key", &leaf.key)
            ),
            format!("seal_key = '{}'", write("seal.key", &"s".repeat(32))),
            format!("[gateway]\nlisten = '{}'\nexternal_url = '{url}'", ports[0]),
            format!("[raft]\nlisten = '{}'\n[tunnel]\nlisten = '{}'", ports[1], ports[2]),
            format!(
                "[[member]]\nid = 1\nname = 'eu-1'\nregion = 'eu'\ngateway = '{url}'\nraft = '{}'\ntunnel = '{}'",
                ports[1], ports[2]
            ),
            format!(
                "[[oidc]]\nid = 'corp'\nissuer = '{}'\nclient_id = 'hanse'",
                provider.issuer
            ),
            format!(
                "client_secret_file = '{}'\nca_file = '{}'",
                write("secret", SECRET),
                write("corp.pem", &provider.ca)
            ),
        ];
        let config = write("server.toml", &text.join("\n"));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_hanse"))
            .args(["server", "--config", &config])
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut installation = Self {
            ca: ca.cert_pem().to_owned(),
            url,
            dir,
            provider,
            server,
        };
        long("the server is ready", installation.ready()).await;
        Some(installation)
    }

    async fn ready(&mut self) {
        let address = self.url.trim_start_matches("https://").to_owned();
        loop {
            let gone = self.server.try_wait().unwrap();
            assert!(gone.is_none(), "the server ended: {}", self.log());
            if TcpStream::connect(&address).await.is_ok() {
                let (code, _, _) = self.browser().step("GET", &format!("{}/readyz", self.url), "").await;
                if code == 200 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn browser(&self) -> Browser {
        Browser::default()
            .knows(&self.url, &self.ca)
            .knows(&self.provider.issuer, &self.provider.ca)
    }

    /// `hanse` of a user who has nothing yet but a folder `name`.
    fn hanse(&self, name: &str, args: &[&str]) -> Command {
        let home = self.home(name);
        fs::create_dir_all(&home).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hanse"));
        command.args(args).env_clear().env("HOME", &home).kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn home(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn login(&self, name: &str, way: &str) -> Login {
        let ca = self.home("ca.pem");
        let mut child = self
            .hanse(name, &["login", &self.url, "--ca-file", ca.to_str().unwrap(), way])
            .spawn()
            .unwrap();
        Login {
            told: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    /// The login ended well, and the key is one of ann's.
    async fn is_ann(&self, name: &str, login: Login) {
        let Login { mut child, mut told } = login;
        let mut rest = String::new();
        long("it ends", told.read_to_string(&mut rest)).await.unwrap();
        assert!(long("it ends", child.wait()).await.unwrap().success(), "{rest}");
        let kept = fs::read_to_string(self.home(name).join(".config/hanse/config.toml")).unwrap();
        let key = kept.split('"').find(|part| part.starts_with("hak1.")).unwrap();
        for shown in [rest, self.log()] {
            assert!(
                !shown.contains(key.rsplit('.').next().unwrap()),
                "the key is shown: {shown}"
            );
            assert!(!shown.contains(SECRET), "the secret is shown: {shown}");
        }
        let mut me = self.hanse(name, &["key", "list", "-o", "json"]);
        let me = me.stdout(Stdio::piped()).output().await.unwrap();
        let me = String::from_utf8_lossy(&me.stdout).into_owned();
        assert!(me.contains("\"user\": \"ann\"") && me.contains("\"Login\""), "{me}");
    }
}

struct Login {
    child: Child,
    told: BufReader<tokio::process::ChildStderr>,
}

impl Login {
    /// The first address that it tells.
    async fn address(&mut self) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            let read = long("it tells an address", self.told.read_line(&mut line))
                .await
                .unwrap();
            assert!(read > 0, "it ended: {all}");
            if let Some(url) = line
                .split_whitespace()
                .find(|word| word.starts_with("https://") && word.contains('?'))
            {
                return url.to_owned();
            }
            all.push_str(&line);
        }
    }
}

#[tokio::test]
async fn people_log_in_by_an_identity_provider_wherever_they_sit() {
    let Some(installation) = Installation::start().await else {
        return;
    };
    let mut browser = installation.browser();

    // A code to be pasted.
    let mut login = installation.login("headless", "--headless");
    let page = browser.log_in(&login.address().await, "corp", "ann-1").await;
    let mut input = login.child.stdin.take().unwrap();
    let code = format!("{}\n", page.between("<code>", "</code>"));
    input.write_all(code.as_bytes()).await.unwrap();
    installation.is_ann("headless", login).await;

    // A browser of this machine.
    let mut login = installation.login("browser", "--browser");
    let page = browser.log_in(&login.address().await, "corp", "ann-1").await;
    let (host, path) = page.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    for (path, want) in [
        ("favicon.ico", "404"),
        ("callback?code=x&state=y", "404"),
        (path, "200"),
    ] {
        let mut stream = TcpStream::connect(host).await.unwrap();
        let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        long("it answers", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{answer}");
    }
    installation.is_ann("browser", login).await;

    // A device without either.
    let mut login = installation.login("device", "--device");
    let page = browser.log_in(&login.address().await, "corp", "ann-1").await;
    let form = format!("question={}", page.between("name=\"question\" value=\"", "\""));
    let page = browser
        .post(&format!("{}/auth/device/confirm", installation.url), &form)
        .await;
    assert_eq!(page.code, 200, "{page:?}");
    installation.is_ann("device", login).await;
}
