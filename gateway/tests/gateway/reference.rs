//! The reference in `docs/api` is what is served, and a real gateway takes the requests that it shows as they stand there.

use crate::world::World;
use hanse_gateway::api_reference;
use serde_json::Value;
use std::path::Path;

/// Path and body of a command of the reference.
fn read(command: &str) -> (&str, Option<Value>) {
    let (_, rest) = command.split_once("\"$HANSE").unwrap();
    let (path, rest) = rest.split_once('"').unwrap();
    let body = rest.split_once("--data '").map(|(_, body)| {
        let (body, _) = body.rsplit_once('\'').unwrap();
        serde_json::from_str(body).unwrap()
    });
    (path, body)
}

#[tokio::test]
async fn every_request_of_the_reference_is_taken() {
    let world = World::start().await;
    let admin = world.admin();
    let pages = api_reference();
    let mut sent = 0;
    for (file, page) in pages.iter().filter(|(file, _)| *file != "README.md") {
        let commands: Vec<&str> = page.split("```sh\n").skip(1).collect();
        assert_eq!(
            commands.len(),
            page.matches("\n## ").count(),
            "one for each kind of {file}"
        );
        for command in commands {
            let (path, body) = read(command.split("\n```").next().unwrap());
            let (answer, code) = match &body {
                Some(body) => (admin.post(path, body).await, 201),
                None => (admin.get(path).await, 200),
            };
            assert_eq!(answer.code, code, "{file}: {command}: {}", answer.text);
            sent += 1;
        }
    }
    assert!(sent >= 20, "{sent}");
}

#[test]
fn fields_say_what_is_required_filled_in_and_allowed() {
    let files = api_reference();
    let page = &files["management.loft.sh-v1.md"];
    for row in [
        "| `spec.members[].kind` | string | yes |",
        "| `spec.username` | string |  | `<name>` |",
        "| `spec.owner` | any |  | `{\"user\":\"<caller>\"}` |",
        "One of `Pending`, `Ready`, `Sleeping`, `Failed`.",
        "/virtualclusterinstances/{name}/kubeconfig` | VirtualClusterInstanceKubeConfig | `create` |",
        "| `spec.data.<key>` | string |",
    ] {
        assert!(page.contains(row), "{row} in {page}");
    }
    assert!(files["hanse.dev-v1.md"].contains("/servers/{name}/move`"));
}

#[test]
fn the_committed_reference_is_what_is_served() {
    let remedy = "run `cargo xtask api-docs`";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api");
    let mut wanted = api_reference();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let wanted = wanted.remove(&name);
        assert!(
            wanted.is_some_and(|wanted| wanted == text),
            "docs/api/{name} is not what is served: {remedy}"
        );
    }
    let missing: Vec<&String> = wanted.keys().collect();
    assert!(missing.is_empty(), "docs/api lacks {missing:?}: {remedy}");
}
