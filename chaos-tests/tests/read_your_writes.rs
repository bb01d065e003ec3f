//! What was acknowledged in one region is there for whoever asks in another, at once: at the start of an installation,
//! and right after the leader has died.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, bail};
use hanse_chaos_tests::World;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::json;
use std::time::{Duration, Instant};

/// Writes per pass over all pairs of regions.
const PASSES: usize = 12;
const REGIONS: [&str; 3] = ["eu", "us", "ap"];

fn resource() -> ApiResource {
    ApiResource {
        group: "management.loft.sh".into(),
        version: "v1".into(),
        api_version: "management.loft.sh/v1".into(),
        kind: "Project".into(),
        plural: "projects".into(),
    }
}

/// A project is created in one region and read in another, for all pairs in `regions`.
async fn all_pairs(world: &World, prefix: &str, regions: &[&str]) -> Result<usize> {
    let mut clients = Vec::new();
    for region in regions {
        let client = world.client(&format!("hanse_management_{region}")).await?;
        clients.push((region, Api::<DynamicObject>::all_with(client, &resource())));
    }
    let mut checked = 0;
    for pass in 0..PASSES {
        for (a, write) in &clients {
            for (b, read) in &clients {
                let name = format!("{prefix}-{pass}-{a}-{b}");
                let object = DynamicObject::new(&name, &resource()).data(json!({ "spec": {} }));
                write
                    .create(&PostParams::default(), &object)
                    .await
                    .with_context(|| format!("create {name}"))?;
                match read.get_opt(&name).await.with_context(|| format!("read {name}"))? {
                    Some(_) => checked += 1,
                    None => bail!("{name} was acknowledged in {a} and is not there in {b}"),
                }
            }
        }
    }
    Ok(checked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_write_is_there_in_every_region_at_once() -> Result<()> {
    let world = World::up(27)?;
    world.hanse(&["connect", "--management"])?;
    let begun = Instant::now();
    let checked = all_pairs(&world, "first", &REGIONS).await?;
    println!("{checked} writes read at once elsewhere in {:.1?}", begun.elapsed());
    let leader = world.leader(0)?;
    world.process("server", &leader)?.kill()?;
    let left: Vec<&str> = REGIONS.into_iter().filter(|r| *r != leader).collect();
    world.until("a new leader", Duration::from_secs(20), || world.leader(0).map(|_| ()))?;
    let checked = all_pairs(&world, "second", &left).await?;
    println!("{checked} more after the leader's death");
    world.hanse(&["start", &leader])?;
    let checked = all_pairs(&world, "third", &REGIONS).await?;
    println!("{checked} more after its return");
    world.finish()
}
