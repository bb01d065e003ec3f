//! The load of `cargo xtask bench api` on the real programs, small: whether it measures anything, never how fast.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::api_bench::{Plan, Programs, run};
use hanse_chaos_tests::programs::{binary, tool};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_answer_everything_that_is_measured() -> Result<()> {
    let plan = Plan {
        runs: 1,
        seconds: 0.5,
        clients: 4,
        // More than a part of a list.
        objects: 510,
        watchers: 20,
        ..Plan::default()
    };
    let programs = Programs {
        hanse: binary()?,
        kube_apiserver: tool("kube-apiserver")?,
        etcd: tool("etcd")?,
        data: std::env::temp_dir(),
    };
    let report = run(&plan, &programs).await?;
    let table = report.markdown();
    println!("{table}");
    for title in [
        "get",
        "list of 510",
        "list of 510 by 500",
        "update",
        "server-side apply",
        "create",
    ] {
        let client = |line: &&hanse_chaos_tests::bench::Line| line.title == format!("{title}, 4 clients");
        ensure!(
            report.lines.iter().find(client).is_some(),
            "there is no line of {title}"
        );
    }
    ensure!(
        report.lines.len() == 7 && table.contains("| 20 watchers, 20/s |"),
        "lines are missing"
    );
    for line in &report.lines {
        for side in [&line.peer, &line.hanse] {
            let all_well = side.len() == 1 && side.iter().all(|run| run.errors == 0 && run.per_second > 0.0);
            ensure!(all_well, "{}: {side:?}", line.title);
            ensure!(
                side.iter().all(|run| run.memory_mib > 0),
                "{} has no memory",
                line.title
            );
        }
    }
    let out = tempfile::tempdir()?;
    report.write(out.path())?;
    let svg = std::fs::read_to_string(out.path().join("api.svg"))?;
    ensure!(
        svg.matches("<rect").count() == 1 + report.lines.len(),
        "bars are missing: {svg}"
    );
    Ok(())
}
