//! kube-apiserver on `hanse store` while members are killed, for a minute; `cargo xtask soak` does it for longer.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::programs::{binary, tool};
use hanse_chaos_tests::soak::{Plan, Tools, run};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_apiserver_goes_on_over_killed_members() -> Result<()> {
    let plan = Plan {
        duration: Duration::from_secs(45),
        between: Duration::from_secs(12),
        seed: 1,
    };
    let tools = Tools {
        hanse: binary()?,
        api_server: tool("kube-apiserver")?,
        data: std::env::temp_dir(),
    };
    let report = run(&plan, &tools).await?;
    println!("{}", report.table());
    ensure!(report.kills >= 2, "only {} members were killed", report.kills);
    for verb in ["create", "update", "delete", "get", "list"] {
        let done = report.lines.iter().any(|line| line.verb == verb && line.count > 0);
        ensure!(done, "no {verb} was acknowledged");
    }
    ensure!(report.events > 0 && report.told > 0, "nothing was told or expired");
    Ok(())
}
