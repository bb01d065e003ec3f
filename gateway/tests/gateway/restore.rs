//! Who may put a tenant's key space back, what is refused before it begins, and what the trail has of it.

use crate::world::{TENANT, World, soon};
use bytes::Bytes;
use futures::StreamExt as _;
use hanse_gateway::{BackupOf, BackupStream, Backups, PutBack, Said};
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_state::StoreError;
use hanse_state::backup::{BackupError, Replaced};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const ONE: &str = "/restore?project=default&name=demo";
const EVENTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/events";

/// Takes any file but those that say what is wrong with them.
#[derive(Default)]
struct Files(Mutex<Vec<(String, Bytes)>>);

struct File(Bytes);

#[async_trait::async_trait]
impl Backups for Files {
    async fn take(&self, _of: BackupOf) -> Result<BackupStream, StoreError> {
        Err(StoreError::NoLeader)
    }

    async fn receive(&self, tenant: &str, mut file: BackupStream) -> Result<Box<dyn PutBack>, BackupError> {
        let mut whole = Vec::new();
        while let Some(piece) = file.next().await {
            whole.extend_from_slice(&piece.unwrap());
        }
        if whole == b"\"cut\"" {
            return Err(BackupError::CutShort);
        }
        let whole = Bytes::from(whole);
        self.0.lock().push((tenant.to_owned(), whole.clone()));
        Ok(Box::new(File(whole)))
    }
}

#[async_trait::async_trait]
impl PutBack for File {
    async fn run(self: Box<Self>, said: Said) -> Result<Replaced, BackupError> {
        said(7);
        if self.0 == "\"worse\"" {
            return Err(StoreError::NoSpace.into());
        }
        Ok(Replaced {
            keys: 3,
            leases: 0,
            bytes: 7,
            backup_hash: 1,
            hash: 2,
            revision: 9,
        })
    }
}

async fn world() -> (World, Arc<Files>) {
    let files = Arc::new(Files::default());
    let world = World::with(|parts| parts.backups = Arc::clone(&files) as _).await;
    (world, files)
}

/// Codes of the trail's events of restores, once there are as many.
async fn trail(world: &World, many: usize) -> Vec<Value> {
    let (admin, clock) = (world.admin(), SystemClock::new());
    let look = async {
        loop {
            let list = admin.get(EVENTS).await.good();
            let all = list["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["status"].clone());
            let ours: Vec<Value> = all.filter(|event| event["verb"] == "restore").collect();
            if ours.len() >= many {
                return ours;
            }
            clock.sleep(Duration::from_millis(50)).await;
        }
    };
    soon(look).await
}

#[tokio::test]
async fn only_administrators_put_a_tenant_back_and_the_trail_knows() {
    let (world, files) = world().await;
    let file = json!("file");
    world.client(None).post(ONE, &file).await.fails(401);
    world.bob().post(ONE, &file).await.fails(403);
    world.bob().get(ONE).await.fails(403);
    assert!(files.0.lock().is_empty(), "nothing was received of those who may not");
    let admin = world.admin();
    assert_eq!(admin.get(ONE).await.good(), json!({ "tenant": TENANT }));
    let answer = admin.post(ONE, &file).await;
    let lines: Vec<Value> = answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0], json!({ "bytes": 7 }), "{}", answer.text);
    assert_eq!(lines[1]["restored"]["keys"], 3);
    assert_eq!(lines[1]["restored"]["hash"], "0000000000000002");
    assert_eq!(*files.0.lock(), [(TENANT.to_owned(), Bytes::from_static(b"\"file\""))]);
    let events = trail(&world, 2).await;
    for (event, (stage, code)) in events
        .iter()
        .zip([("RequestReceived", Value::Null), ("ResponseComplete", 200.into())])
    {
        assert_eq!(
            (&event["stage"], &event["responseStatus"]["code"]),
            (&json!(stage), &code)
        );
        assert_eq!(
            (&event["objectRef"]["name"], &event["user"]["username"]),
            (&json!("demo"), &json!("admin"))
        );
    }
}

#[tokio::test]
async fn what_cannot_be_put_back_is_refused_and_what_fails_says_so() {
    let (world, files) = world().await;
    let admin = world.admin();
    let refusal = admin.post(ONE, &json!("cut")).await.fails(400);
    assert!(refusal["message"].as_str().unwrap().contains("cut short"), "{refusal}");
    admin
        .post("/restore?project=default&name=none", &json!("file"))
        .await
        .fails(404);
    for half in ["/restore", "/restore?project=default", "/restore?project=..&name=demo"] {
        admin.post(half, &json!("file")).await.fails(400);
    }
    admin.put(ONE, &json!("file")).await.fails(405);
    assert!(files.0.lock().is_empty());
    let answer = admin.post(ONE, &json!("worse")).await;
    let last: Value = serde_json::from_str(answer.text.lines().last().unwrap()).unwrap();
    assert!(last["failed"].as_str().unwrap().contains("quota"), "{last}");
    let events = trail(&world, 2).await;
    assert_eq!(events[1]["responseStatus"]["code"], 500, "{events:?}");
}
