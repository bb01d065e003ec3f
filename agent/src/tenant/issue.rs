//! Certificates that are of one host and one tenant: issued here from the tenant's authority, kept on disk.

use super::render::KUBERNETES_SERVICE_IP;
use crate::error::AgentError;
use crate::files;
use crate::paths::TenantDir;
use hanse_api::Timestamp;
use hanse_api::intent::TenantPki;
use hanse_runtime::pki::{Ca, LeafSpec, sha256_hex};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Lifetime of the API server's certificate. It reads a new one while it runs.
const DAYS: u32 = 365;
/// Lifetime of the certificates of simulated nodes. kwok reads its own only when it starts.
const SIMULATED_DAYS: u32 = 3650;
/// Age at which all are issued anew.
const RENEW_AFTER: Duration = Duration::from_secs(240 * 86_400);

/// What the certificates on disk were issued for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Issued {
    authority: String,
    address: IpAddr,
    at_millis: i64,
}

/// Issues the certificates of `tenant` unless good ones are there. kube-apiserver reads its own again when they change.
pub(super) fn ensure(
    tenant: &str,
    dir: &TenantDir,
    pki: &TenantPki,
    address: IpAddr,
    now: Timestamp,
) -> Result<(), AgentError> {
    let state = dir.conf().join("issued.json");
    let authority = sha256_hex(pki.ca.cert.as_bytes());
    if let Some(bytes) = files::read_optional(&state)?
        && let Ok(issued) = serde_json::from_slice::<Issued>(&bytes)
        && issued.authority == authority
        && issued.address == address
        && now.since(Timestamp::from_millis(issued.at_millis)) < RENEW_AFTER
    {
        return Ok(());
    }
    let whose = format!("tenant {tenant}");
    let ca = Ca::load(&pki.ca.cert, &pki.ca.key).map_err(AgentError::keys(&whose))?;
    for (name, spec) in [
        ("apiserver", apiserver(address)),
        ("kubelet", kubelet(address)),
        ("kwok", kwok()),
    ] {
        let pair = ca.issue(&spec, now).map_err(AgentError::keys(&whose))?;
        files::write_atomic(&dir.pki().join(format!("{name}.key")), pair.key.as_bytes())?;
        files::write_atomic(&dir.pki().join(format!("{name}.crt")), pair.cert.as_bytes())?;
    }
    let issued = Issued {
        authority,
        address,
        at_millis: now.as_millis(),
    };
    let text = serde_json::to_vec(&issued).map_err(|error| AgentError::Malformed {
        what: "state of certificates",
        fault: error.to_string(),
    })?;
    // Last: after a crash in between everything is issued again.
    files::write_atomic(&state, &text)
}

fn apiserver(address: IpAddr) -> LeafSpec {
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let mut ips = vec![address, IpAddr::V4(Ipv4Addr::LOCALHOST), KUBERNETES_SERVICE_IP];
    ips.dedup();
    LeafSpec {
        common_name: "kube-apiserver".into(),
        dns: names.map(str::to_owned).to_vec(),
        ips,
        server: true,
        days: DAYS,
        ..LeafSpec::default()
    }
}

fn kubelet(address: IpAddr) -> LeafSpec {
    LeafSpec {
        common_name: "simulated-nodes".into(),
        ips: vec![address],
        server: true,
        days: SIMULATED_DAYS,
        ..LeafSpec::default()
    }
}

/// kwok writes the status of nodes and pods and leases of nodes. It runs beside the tenant's root key, so a narrower
/// role would keep nothing from it.
fn kwok() -> LeafSpec {
    LeafSpec {
        common_name: "hanse:simulated-nodes".into(),
        organizations: vec!["system:masters".into()],
        client: true,
        days: SIMULATED_DAYS,
        ..LeafSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Layout;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    #[test]
    fn issued_once_and_again_when_something_changed_or_they_got_old() {
        let root = tempfile::tempdir().unwrap();
        let dir = Layout::new(root.path()).tenant("t");
        dir.all().iter().for_each(|dir| files::private_dir(dir).unwrap());
        let pki = |name: &str| TenantPki {
            ca: Ca::generate(name, 10, NOW).unwrap().key_pair(),
            ..TenantPki::default()
        };
        let cert = || std::fs::read_to_string(dir.pki().join("apiserver.crt")).unwrap();
        let one = pki("one");
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        ensure("t", &dir, &one, here, NOW).unwrap();
        let first = cert();
        ensure("t", &dir, &one, here, NOW.plus(Duration::from_secs(86_400))).unwrap();
        assert_eq!(cert(), first);
        let mut last = first;
        for (pki, address, at) in [
            (&one, there, NOW),
            (&pki("two"), there, NOW),
            (&one, here, NOW),
            (&one, here, NOW.plus(RENEW_AFTER)),
        ] {
            ensure("t", &dir, pki, address, at).unwrap();
            assert_ne!(cert(), last);
            last = cert();
        }
    }
}
