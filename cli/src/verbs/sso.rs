//! Logins by an identity provider: in the browser of this machine, in another one with a code to paste, or by letting this
//! program in from another device. The access key comes over the connection to the server; addresses hold codes only, which
//! are of no use to anybody without the verifier that this process keeps.

use crate::app::App;
use crate::client::Http;
use crate::client::http::{Call, Reply};
use crate::error::{Error, Kind, Result};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hanse_runtime::clock::timeout;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long the person may take in the browser.
const PERSON: Duration = Duration::from_secs(600);
/// How long a browser may take to say what it wants of us.
const HEAD: Duration = Duration::from_secs(5);
/// Longest request of a browser that is read.
const HEAD_MAX: usize = 8 * 1024;
/// Longest code that is read.
const CODE_MAX: u64 = 4096;

/// Where the person is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// At a browser of this machine.
    Browser,
    /// At another one, with a keyboard here.
    Headless,
    /// At another one.
    Device,
}

/// Whether there is a provider to log in by.
pub(crate) async fn is_there(http: &Http) -> bool {
    login_url(http).await.is_ok()
}

/// An access key, after the person has logged in.
pub(crate) async fn access_key(app: &App, http: &Http, way: Way) -> Result<String> {
    let page = login_url(http).await?;
    let verifier = app.rng.token();
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    let code = match way {
        Way::Device => return device(app, http).await,
        Way::Headless => {
            app.output.note(&format!(
                "open this in any browser, and log in:\n  {page}?challenge={challenge}"
            ));
            pasted(app)?
        }
        Way::Browser => in_browser(app, &format!("{page}?challenge={challenge}")).await?,
    };
    let reply = post(http, "/auth/exchange", &json!({ "code": code, "verifier": verifier })).await?;
    key_of(http, &reply)
}

/// The page that people log in at.
async fn login_url(http: &Http) -> Result<String> {
    let reply = http
        .once(&Call::get("/auth/info"))
        .await
        .map_err(|fault| http.explain(&fault))?;
    let none = || {
        Error::new(
            Kind::Denied,
            format!("{} has no identity provider to log in by", http.base()),
        )
        .hint("log in with an access key: `hanse login URL --access-key-file FILE`")
    };
    let info: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let some = info["methods"]["sso"].as_array().is_some_and(|sso| !sso.is_empty());
    let url = info["loginUrl"].as_str().filter(|url| url.starts_with("https://"));
    match url {
        Some(url) if reply.status == StatusCode::OK && some => Ok(url.to_owned()),
        _ => Err(none()),
    }
}

/// Waits on a port of this machine for the browser to come back.
async fn in_browser(app: &App, page: &str) -> Result<String> {
    let fault = |e: std::io::Error| Error::failed(format!("cannot wait for the browser: {e}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(fault)?;
    let port = listener.local_addr().map_err(fault)?.port();
    let state = app.rng.token();
    let page = format!("{page}&port={port}&state={state}");
    app.output.note(&format!("log in in your browser:\n  {page}"));
    if !show(&page) {
        app.output
            .note("(in a browser of this machine; for another one there are --headless and --device)");
    }
    let answered = async {
        loop {
            let (stream, _) = listener.accept().await.map_err(fault)?;
            // Anybody on this machine may connect; only the right state counts.
            if let Ok(Some(code)) = timeout(app.clock.as_ref(), HEAD, answer(stream, &state)).await {
                return Ok(code);
            }
        }
    };
    match timeout(app.clock.as_ref(), PERSON, answered).await {
        Ok(code) => code,
        Err(_) => Err(too_late()),
    }
}

fn too_late() -> Error {
    Error::failed(format!("nobody logged in within {} minutes", PERSON.as_secs() / 60)).hint("begin again")
}

/// Opens the page where there are a person and a browser.
fn show(page: &str) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let graphical = cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY");
    if !std::io::stderr().is_terminal() || !graphical {
        return false;
    }
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = Command::new(program);
    command
        .arg(page)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().is_ok()
}

/// The code of a browser that comes with the right state.
async fn answer(mut stream: TcpStream, state: &str) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let read = stream.read(&mut part).await.ok()?;
        if read == 0 || head.len() + read > HEAD_MAX {
            return None;
        }
        head.extend_from_slice(&part[..read]);
    }
    let code = code_of(&String::from_utf8_lossy(&head), state);
    let (status, text) = if code.is_some() {
        (
            "200 OK",
            "You are logged in. You can close this page and go on in the terminal.\n",
        )
    } else {
        ("404 Not Found", "There is nothing here.\n")
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nreferrer-policy: no-referrer\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    // The code counts, whether or not the browser stays to read this.
    let _told = stream.write_all(reply.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok();
    code
}

/// The code in a request for `/callback`. Codes and states need no decoding: they hold no character that would be encoded.
fn code_of(head: &str, state: &str) -> Option<String> {
    let target = head.lines().next()?.strip_prefix("GET /callback?")?.split(' ').next()?;
    let value = |name: &str| {
        target
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    if value("state")? != state {
        return None;
    }
    value("code").filter(|code| !code.is_empty()).map(str::to_owned)
}

/// The code that the person pastes.
fn pasted(app: &App) -> Result<String> {
    if std::io::stdin().is_terminal() {
        app.output.note("then paste the code that it shows here:");
    }
    let mut line = String::new();
    let read = std::io::stdin().lock().take(CODE_MAX).read_line(&mut line);
    read.map_err(|e| Error::failed(format!("cannot read the code: {e}")))?;
    let code = line.trim();
    if code.is_empty() {
        return Err(Error::usage("the code is empty").hint("paste the code that the browser shows, on standard input"));
    }
    Ok(code.to_owned())
}

/// Asks until somebody lets this device in.
async fn device(app: &App, http: &Http) -> Result<String> {
    let reply = post(http, "/auth/device/start", &json!({})).await?;
    let begun: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = |name: &str| {
        let odd = || Error::failed(format!("{} gave an answer that has no {name}", http.base()));
        begun[name].as_str().map(str::to_owned).ok_or_else(odd)
    };
    let (page, whole) = (text("verificationUri")?, text("verificationUriComplete")?);
    let (code, device) = (text("userCode")?, text("deviceCode")?);
    let interval = Duration::from_secs(begun["interval"].as_u64().unwrap_or(2).clamp(1, 60));
    app.output.note(&format!(
        "open this in any browser, log in, and let the device with the code {code} in:\n  {whole}\nor type the code at {page}"
    ));
    let asked = async {
        loop {
            // A server that is away for a moment is no end: any other goes on.
            let body = json!({ "deviceCode": device });
            match post(http, "/auth/device/poll", &body).await {
                Ok(reply) if reply.status == StatusCode::ACCEPTED => {}
                Ok(reply) => return key_of(http, &reply),
                Err(error) if error.kind() == Kind::Unreachable => {}
                Err(error) => return Err(error),
            }
            app.clock.sleep(interval).await;
        }
    };
    match timeout(app.clock.as_ref(), PERSON, asked).await {
        Ok(key) => key,
        Err(_) => Err(too_late()),
    }
}

async fn post(http: &Http, path: &str, body: &Value) -> Result<Reply> {
    let call = Call {
        method: Method::POST,
        path: path.to_owned(),
        body: Some(Bytes::from(body.to_string())),
    };
    let reply = http.once(&call).await.map_err(|fault| http.explain(&fault))?;
    if reply.status.is_success() {
        return Ok(reply);
    }
    let status: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let why = status["message"].as_str().unwrap_or("it gave no reason").to_owned();
    let kind = if reply.status.is_server_error() || reply.status == StatusCode::TOO_MANY_REQUESTS {
        Kind::Unreachable
    } else {
        Kind::Denied
    };
    Err(Error::new(kind, format!("{} did not log you in: {why}", http.base())))
}

fn key_of(http: &Http, reply: &Reply) -> Result<String> {
    let value: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let odd = || Error::failed(format!("{} gave an answer without an access key", http.base()));
    value["accessKey"].as_str().map(str::to_owned).ok_or_else(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_browser_with_our_state_brings_a_code() {
        let request = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n");
        let code = |target: &str| code_of(&request(target), "s1");
        assert_eq!(code("/callback?code=abc&state=s1").as_deref(), Some("abc"));
        assert_eq!(code("/callback?state=s1&code=abc").as_deref(), Some("abc"));
        for bad in [
            "/callback?code=abc",
            "/callback?code=abc&state=s2",
            "/callback?code=&state=s1",
            "/callback?state=s1",
            "/?code=abc&state=s1",
            "/callback",
        ] {
            assert_eq!(code(bad), None, "{bad}");
        }
        assert_eq!(code_of("POST /callback?code=abc&state=s1 HTTP/1.1\r\n\r\n", "s1"), None);
    }
}
