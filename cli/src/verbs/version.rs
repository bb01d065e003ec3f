//! `version`: of this program, and of the server if there is one.

use super::print_document;
use crate::app::App;
use crate::client::http::Call;
use crate::error::Result;
use crate::output::Format;
use serde::Serialize;
use serde_json::Value;

/// Of this program.
pub(crate) const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Serialize)]
struct Versions {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Value>,
}

/// `version`. A server that does not answer is no failure of this verb.
pub(crate) async fn version(app: &App, format: Format) -> Result<()> {
    let (server, note) = match app.login() {
        Err(_) => (None, None),
        Ok(login) => {
            let http = app.http(&login)?;
            match http.once(&Call::get("/version")).await {
                Ok(reply) if reply.status.is_success() => (serde_json::from_slice::<Value>(&reply.body).ok(), None),
                Ok(reply) => (
                    None,
                    Some(format!("{} answers HTTP {}", login.server, reply.status.as_u16())),
                ),
                Err(fault) => (None, Some(http.explain(&fault).to_string())),
            }
        }
    };
    let versions = Versions {
        client: OWN.to_owned(),
        server,
    };
    if !print_document(&app.output, format, &versions)? {
        app.output.line(&format!("hanse {OWN}"))?;
        if let Some(server) = &versions.server {
            let shown = server
                .get("hanseVersion")
                .or_else(|| server.get("gitVersion"))
                .and_then(Value::as_str);
            app.output
                .line(&format!("server {}", shown.unwrap_or("of unknown version")))?;
        }
    }
    if let Some(note) = note {
        app.output.note(&note);
    }
    Ok(())
}
