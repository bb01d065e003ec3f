//! Runs the binary with a home and configuration of its own, and a small HTTPS server for it to talk to.

use hanse_api::Timestamp;
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec, load_certs, load_key};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// A user with nothing but a folder.
pub(crate) struct User {
    dir: tempfile::TempDir,
}

/// What a run of the binary gave.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl User {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hanse"));
        command.args(args).env_clear().stdin(Stdio::null());
        command
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin")
            .env("HANSE_HOME", self.path("h"));
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        finish(self.command(args).output().unwrap())
    }

    pub(crate) fn run_with_stdin(&self, args: &[&str], input: &str) -> Run {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        finish(child.wait_with_output().unwrap())
    }

    /// Logs in at `server`.
    pub(crate) fn log_in(&self, server: &Server) {
        let ca = self.write("ca.pem", &server.ca);
        let args = [
            "login",
            &server.url,
            "--ca-file",
            ca.to_str().unwrap(),
            "--access-key-file",
            "-",
        ];
        let run = self.run_with_stdin(&args, GOOD_KEY);
        assert_eq!(run.code, 0, "{run:?}");
    }
}

pub(crate) fn finish(output: Output) -> Run {
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The key that the server takes.
pub(crate) const GOOD_KEY: &str = "hak1.test.c2VjcmV0";

/// What a server answers: status and body, by method and path.
pub(crate) type Answer = dyn Fn(&str, &str, &str) -> (u16, String) + Send + Sync;

/// A server of the management API in miniature: one thread per connection, one request per connection.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) ca: String,
    /// Request lines, without the key.
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&str, &str, &str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let now = SystemClock::new().wall();
        let ca = Ca::generate("test", 1, now).unwrap();
        let config = Arc::new(tls(&ca, now));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer): (_, Arc<Answer>) = (seen.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, log, answer) = (config.clone(), log.clone(), answer.clone());
                thread::spawn(move || serve(stream, config, &log, &*answer));
            }
        });
        Self {
            url,
            ca: ca.cert_pem().to_owned(),
            seen,
        }
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn tls(ca: &Ca, now: Timestamp) -> ServerConfig {
    let spec = LeafSpec {
        ips: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        days: 1,
        ..Default::default()
    };
    let leaf = ca.issue(&spec, now).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap())
        .unwrap()
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, log: &Mutex<Vec<String>>, answer: &Answer) {
    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let (head, length) = loop {
        match tls.read(&mut buffer) {
            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
            _ => return,
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            break (head.to_owned(), length.map_or(0, |l| l.parse::<usize>().unwrap()));
        }
    };
    while request.len() < head.len() + 4 + length {
        match tls.read(&mut buffer) {
            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
    let body = String::from_utf8_lossy(&request[head.len() + 4..]).into_owned();
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    log.lock().unwrap().push(format!("{method} {path}"));
    let authorized = head
        .lines()
        .any(|l| l.eq_ignore_ascii_case(&format!("authorization: Bearer {GOOD_KEY}")));
    let (status, text) = if authorized {
        answer(method, path, &body)
    } else {
        (401, refusal(401, "Unauthorized", "who are you"))
    };
    let reply = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    let _sent = tls.write_all(reply.as_bytes()).and_then(|()| tls.flush()).is_ok();
    tls.conn.send_close_notify();
    let _closed = tls.flush().is_ok();
}

/// A Status as the gateway writes it.
pub(crate) fn refusal(code: u16, reason: &str, message: &str) -> String {
    format!(
        r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","code":{code},"reason":"{reason}","message":"{message}"}}"#
    )
}

/// Whether the file at `path` is for its owner alone.
pub(crate) fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777 == 0o600
}
