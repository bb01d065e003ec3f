//! Who else is given the audit trail: a webhook with all its faults, files, syslog daemons.

#[path = "../webhook/receiver.rs"]
mod receiver;

use crate::oidc_world::{authority, leaf};
use crate::world::{API, Client, World};
use hanse_api::audit::{Verifier, import};
use hanse_gateway::{AuditSink, AuditSinkFiles, AuditSinks, Gateway, GatewayParts};
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_runtime::pki::{load_certs, load_key, sha256_hex};
use hanse_runtime::supervisor::Supervisor;
use hanse_runtime::telemetry::Metrics;
use receiver::{Receiver, TOKEN};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram};

const SINKS: &str = "/kubernetes/management/apis/hanse.dev/v1/auditsinks";
/// Longest wait, on a machine that has much to do.
const PATIENCE: Duration = Duration::from_secs(120);

fn sinks(settings: Value, files: &AuditSinkFiles) -> AuditSinks {
    let settings: Vec<AuditSink> = serde_json::from_value(settings).unwrap();
    let with_files = settings.into_iter().map(|sink| (sink, files.clone())).collect();
    AuditSinks::new("eu-1", with_files, &SystemClock::shared()).unwrap()
}

/// Waits until `holds`; the last reason why not is told.
async fn until(mut holds: impl AsyncFnMut() -> Result<(), String>) {
    let clock = SystemClock::new();
    loop {
        match holds().await {
            Ok(()) => return,
            Err(why) => assert!(clock.mono() < PATIENCE, "{why}"),
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
}

async fn projects(client: &Client, prefix: &str, number: u64) {
    for n in 0..number {
        let project = json!({ "metadata": { "name": format!("{prefix}-{n}") } });
        client.post(&format!("{API}/projects"), &project).await.good();
    }
}

/// A metric of the sink, as `/metrics` shows it.
async fn metric(client: &Client, name: &str) -> u64 {
    let text = client.get("/metrics").await.text;
    assert!(!text.contains(TOKEN));
    let line = format!("hanse_audit_sink_{name}{{sink=\"siem\"}} ");
    let value = text.lines().find_map(|l| l.strip_prefix(&line)).unwrap_or_default();
    value.parse().unwrap_or_default()
}

async fn webhook() -> (Receiver, AuditSinks) {
    let ca = authority();
    let leaf = leaf(&ca);
    let (chain, key) = (load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap());
    let receiver = Receiver::start(hanse_gateway::tls_config(chain, key).unwrap().as_ref().clone()).await;
    let files = AuditSinkFiles {
        token: Some(format!("{TOKEN}\n")),
        ca: Some(ca.cert_pem().to_owned()),
    };
    let settings = json!([{ "name": "siem", "webhook": { "url": receiver.url() } }]);
    let sinks = sinks(settings, &files);
    (receiver, sinks)
}

/// Waits until the webhook has the first `number` events, all of them in order.
async fn has(receiver: &Receiver, number: u64) {
    until(async || match receiver.state().in_order().unwrap() {
        all if all == number => Ok(()),
        some => Err(format!("{some} of {number}")),
    })
    .await;
}

#[tokio::test]
async fn a_webhook_that_fails_and_goes_away_gets_every_event_in_order() {
    let (mut receiver, sinks) = webhook().await;
    (receiver.state().refuse, receiver.state().swallow) = (1, 1);
    let world = World::with(|parts| parts.audit_sinks = sinks).await;
    let admin = world.admin();
    projects(&admin, "a", 5).await;
    has(&receiver, 5).await;
    // Nobody said yet that the first ones were taken: they come again before anything else does.
    until(async || {
        match (
            metric(&admin, "failures_total").await,
            metric(&admin, "events_total").await,
        ) {
            (2.., 5) => Ok(()),
            (failures, taken) => Err(format!("{failures} failures, {taken} taken")),
        }
    })
    .await;
    receiver.stop().await;
    let failed = metric(&admin, "failures_total").await;
    projects(&admin, "b", 5).await;
    until(async || {
        let (failures, lag) = (
            metric(&admin, "failures_total").await,
            metric(&admin, "lag_events").await,
        );
        if failures > failed && lag == 5 {
            Ok(())
        } else {
            Err(format!("{failures} failures, {lag} behind"))
        }
    })
    .await;
    receiver.start_again().await;
    has(&receiver, 10).await;
    until(async || match metric(&admin, "lag_events").await {
        0 => Ok(()),
        lag => Err(format!("{lag} behind")),
    })
    .await;
    let cursor = admin.get(&format!("{SINKS}/siem")).await.good();
    assert_eq!(cursor["spec"]["sequence"], 10);
    assert_eq!(
        (metric(&admin, "events_total").await, metric(&admin, "lost_total").await),
        (10, 0)
    );
    world.bob().get(SINKS).await.fails(403);
    admin.delete(&format!("{SINKS}/siem")).await.fails(405);
}

#[tokio::test]
async fn whoever_leads_next_goes_on_and_two_who_believe_to_lead_only_repeat() {
    let (receiver, sinks) = webhook().await;
    let mut kept = None;
    // In one process the store's role is always that of a leader: both servers feed the webhook at once.
    let world = World::with(|parts| {
        parts.audit_sinks = sinks;
        kept = Some(parts.clone());
    })
    .await;
    let other = |supervisor: &Supervisor| {
        Gateway::new(GatewayParts {
            supervisor: supervisor.clone(),
            metrics: Metrics::default(),
            ..kept.clone().unwrap()
        })
    };
    let admin = world.admin();
    let mut made = 0;
    for round in 0..3 {
        let supervisor = Supervisor::default();
        let _server = other(&supervisor);
        receiver.state().swallow = 1;
        projects(&admin, &format!("r{round}"), 20).await;
        made += 20;
        // It ends in the middle of its work, wherever that is.
        supervisor.shut_down(PATIENCE).await;
    }
    has(&receiver, made).await;
}

#[tokio::test]
async fn a_file_and_syslog_daemons_get_the_trail() {
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixDatagram::bind(dir.path().join("log")).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let file = dir.path().join("audit.log");
    let settings = json!([
        { "name": "disk", "file": { "path": file } },
        { "name": "unix", "syslog": { "address": format!("unix:{}/log", dir.path().display()) } },
        { "name": "udp", "syslog": { "address": format!("udp://{}", udp.local_addr().unwrap()) } },
        { "name": "tcp", "syslog": { "address": format!("tcp://{}", tcp.local_addr().unwrap()), "facility": 4 } },
    ]);
    let world = World::with(|parts| parts.audit_sinks = sinks(settings, &AuditSinkFiles::default())).await;
    projects(&world.admin(), "a", 3).await;
    let lines = async || std::fs::read_to_string(&file).unwrap_or_default();
    until(async || match lines().await.lines().count() {
        3 => Ok(()),
        n => Err(format!("{n} lines")),
    })
    .await;
    let mut verifier = Verifier::new(None, sha256_hex);
    for line in lines().await.lines() {
        let (link, event) = import(serde_json::from_str(line).unwrap()).unwrap();
        verifier.event(&link, &event).unwrap();
    }
    assert_eq!(verifier.last().unwrap().sequence, 3);
    let mut buffer = vec![0; 64 * 1024];
    for n in 1..=3 {
        let read = tokio::time::timeout(PATIENCE, unix.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        is_message(&buffer[..read], 110, n);
    }
    for n in 1..=3 {
        let read = tokio::time::timeout(PATIENCE, udp.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        is_message(&buffer[..read], 110, n);
    }
    let frames = async {
        let mut stream = BufReader::new(tcp.accept().await.unwrap().0);
        for n in 1..=3 {
            let mut length = Vec::new();
            stream.read_until(b' ', &mut length).await.unwrap();
            let length: usize = std::str::from_utf8(&length).unwrap().trim().parse().unwrap();
            let mut message = vec![0; length];
            stream.read_exact(&mut message).await.unwrap();
            is_message(&message, 38, n);
        }
    };
    tokio::time::timeout(PATIENCE, frames).await.unwrap();
}

/// Whether it is event `number` as RFC 5424 has messages.
fn is_message(bytes: &[u8], priority: u8, number: u64) {
    let text = std::str::from_utf8(bytes).unwrap();
    let rest = text
        .strip_prefix(&format!("<{priority}>1 "))
        .unwrap_or_else(|| panic!("{text}"));
    let (head, event) = rest.split_at(rest.find('{').unwrap());
    assert!(head.ends_with(" eu-1 hanse - audit - "), "{head}");
    let event: Value = serde_json::from_str(event).unwrap();
    assert_eq!(event["annotations"]["audit.hanse.dev/sequence"], number.to_string());
}
