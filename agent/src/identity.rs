//! The agent's identity: a key that never leaves the host, and a certificate for it.
//!
//! The key is written before the first server is asked: when an answer is lost, the same key and token are shown again,
//! and the server recognises them.

use crate::config::AgentConfig;
use crate::error::AgentError;
use crate::files;
use crate::paths::Layout;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::pki;
use hanse_tunnel::enrol::{EnrolmentToken, enrol};
use hanse_tunnel::settings::Settings;
use hanse_tunnel::{Credentials, Enrolled, Identity, TunnelError};
use std::fs;
use std::path::Path;

/// The agent's credentials; enrols when there is no certificate yet.
pub async fn obtain(config: &AgentConfig, settings: &Settings, clock: &SharedClock) -> Result<Credentials, AgentError> {
    let layout = Layout::new(&config.data_dir);
    let ca = read(&config.ca_file)?;
    let cert = match files::read_optional(&layout.cert())? {
        Some(cert) => String::from_utf8_lossy(&cert).into_owned(),
        None => {
            let enrolled = first_time(config, &layout, settings, clock).await?;
            check_cluster(&enrolled.cluster, config)?;
            files::write_atomic(&layout.cert(), enrolled.cert_pem.as_bytes())?;
            tracing::info!(cluster = enrolled.cluster, "enrolled");
            enrolled.cert_pem
        }
    };
    let credentials = Credentials::from_pem(&cert, &read(&layout.key())?, &ca).map_err(AgentError::Tunnel)?;
    if !credentials.key_fits() {
        return Err(AgentError::Damaged {
            path: layout.cert(),
            fault: "it is not for the key beside it".into(),
            loss: "the agent needs a new enrolment token",
        });
    }
    match credentials.identity().map_err(AgentError::Tunnel)? {
        Identity::Agent(cluster) => check_cluster(&cluster, config)?,
        Identity::Server(name) => {
            return Err(AgentError::OtherCluster {
                theirs: format!("server {name}"),
                ours: config.cluster.clone(),
            });
        }
    }
    Ok(credentials)
}

fn check_cluster(theirs: &str, config: &AgentConfig) -> Result<(), AgentError> {
    if theirs == config.cluster {
        return Ok(());
    }
    Err(AgentError::OtherCluster {
        theirs: theirs.to_owned(),
        ours: config.cluster.clone(),
    })
}

fn read(path: &Path) -> Result<String, AgentError> {
    fs::read_to_string(path).map_err(|source| AgentError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

async fn first_time(
    config: &AgentConfig,
    layout: &Layout,
    settings: &Settings,
    clock: &SharedClock,
) -> Result<Enrolled, AgentError> {
    let file = config
        .enrolment_token_file
        .as_ref()
        .ok_or(AgentError::NotEnrolled { cert: layout.cert() })?;
    let token = EnrolmentToken::parse(&read(file)?).map_err(AgentError::Enrolment)?;
    let key = match files::read_optional(&layout.key())? {
        Some(key) => String::from_utf8_lossy(&key).into_owned(),
        None => {
            let key = pki::generate_key_pair().map_err(AgentError::keys("this agent"))?.key;
            files::write_atomic(&layout.key(), key.as_bytes())?;
            key
        }
    };
    let mut last = TunnelError::NotConnected {
        peer: "any server".into(),
    };
    for server in config.servers_by_preference() {
        match enrol(&server.address.to_string(), &token, &key, settings, clock).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(error) => {
                tracing::warn!(server = server.name, error = %error, "enrolment failed");
                let refused = matches!(error, TunnelError::EnrolmentRefused { .. });
                last = error;
                if refused {
                    // The others would say the same: tokens are kept in the replicated store.
                    break;
                }
            }
        }
    }
    Err(AgentError::Enrolment(last))
}
