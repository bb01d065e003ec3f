//! `api-docs`: the reference of the management API. A test of the gateway says when it is not what is served.

use std::process::Command;

use anyhow::Result;

use crate::step::Step;
use crate::{cargo, packages, rocksdb, root, up};

/// Writes `docs/api` from the types that the server serves.
pub(crate) fn write() -> Result<()> {
    packages::install()?;
    rocksdb::ensure()?;
    let step = Step::start("api-docs", "building");
    // Of the whole workspace, so that dependencies are built as for the tests.
    step.run(
        Command::new(cargo())
            .args(["build", "--workspace", "--example", "api_docs"])
            .current_dir(root()),
    )?;
    let writer = up::target_dir()?.join("debug/examples/api_docs");
    step.run(Command::new(writer).arg(root().join("docs/api")))?;
    step.finish("written to docs/api");
    Ok(())
}
