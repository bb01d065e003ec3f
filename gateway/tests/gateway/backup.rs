//! Who gets a backup, and of what; and that it ends with the right to it.

use crate::world::{TENANT, World, soon};
use bytes::Bytes;
use futures::StreamExt as _;
use hanse_api::access::GROUP_ADMINS;
use hanse_api::kinds::ACCESS_KEYS;
use hanse_gateway::{BackupOf, BackupStream, Backups, PutBack, access_key};
use hanse_state::StoreError;
use hanse_state::backup::BackupError;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;

/// Sends one piece; a backup of everything goes on without end, one of a tenant is over.
#[derive(Default)]
struct Pieces(Mutex<Vec<BackupOf>>);

#[async_trait::async_trait]
impl Backups for Pieces {
    async fn take(&self, of: BackupOf) -> Result<BackupStream, StoreError> {
        self.0.lock().push(of.clone());
        let piece = futures::stream::iter([Ok(Bytes::from_static(b"piece"))]);
        Ok(match of {
            BackupOf::Everything => piece.chain(futures::stream::pending()).boxed(),
            BackupOf::Tenant(_) => piece.boxed(),
        })
    }

    async fn receive(&self, _tenant: &str, _file: BackupStream) -> Result<Box<dyn PutBack>, BackupError> {
        Err(StoreError::NoLeader.into())
    }
}

async fn world() -> (World, Arc<Pieces>) {
    let pieces = Arc::new(Pieces::default());
    let world = World::with(|parts| parts.backups = Arc::clone(&pieces) as _).await;
    (world, pieces)
}

#[tokio::test]
async fn only_administrators_get_a_backup() {
    let (world, pieces) = world().await;
    world
        .put(
            &hanse_api::kinds::PROJECTS,
            "",
            "default",
            json!({ "members": [{ "kind": "User", "name": "bob", "clusterRole": "loft-management-project-admin" }] }),
        )
        .await;
    let one = "/backup?project=default&name=demo";
    world.client(None).get(one).await.fails(401);
    let refusal = world.bob().get(one).await.fails(403);
    assert!(
        refusal["message"].as_str().unwrap().contains("cannot get path"),
        "{refusal}"
    );
    let narrow = "narrow";
    world
        .put(
            &ACCESS_KEYS,
            "",
            narrow,
            json!({ "user": "admin", "secretSha256": hanse_runtime::pki::sha256_hex(b"narrow-secret"),
                "scope": { "projects": [{ "project": "default" }] } }),
        )
        .await;
    let scoped = world.client(Some(access_key(narrow, "narrow-secret")));
    scoped.get(one).await.fails(403);
    assert!(pieces.0.lock().is_empty(), "nothing was begun for those who may not");
    let answer = world.admin().get(one).await;
    assert_eq!((answer.code.as_u16(), answer.text.as_str()), (200, "piece"));
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    assert_eq!(*pieces.0.lock(), [BackupOf::Tenant(TENANT.to_owned())]);
}

#[tokio::test]
async fn a_backup_of_nothing_that_exists_is_refused() {
    let (world, _) = world().await;
    let admin = world.admin();
    admin.get("/backup?project=default&name=none").await.fails(404);
    for half in [
        "/backup?project=default",
        "/backup?name=demo",
        "/backup?project=..&name=demo",
    ] {
        admin.get(half).await.fails(400);
    }
    admin.post("/backup", &json!({})).await.fails(405);
    let world = World::start().await;
    world.admin().get("/backup").await.fails(503);
}

#[tokio::test]
async fn a_backup_breaks_off_when_its_key_is_revoked() {
    let (world, _) = world().await;
    world.user("second", &[GROUP_ADMINS]).await;
    world.key("second", "second").await;
    let second = world.client(Some(access_key("second", "second-secret")));
    let response = second.open(second.request("GET", "/backup", &[], "")).await;
    let mut body = response.into_body();
    let piece = soon(body.frame()).await.unwrap().unwrap();
    assert_eq!(piece.into_data().unwrap(), "piece");
    world.remove(&ACCESS_KEYS, "", "second").await;
    let broken = soon(body.frame()).await.unwrap();
    assert!(broken.is_err(), "it did not end as if it were whole");
}
