//! Compiles the wire formats with a compiler written in Rust, so that a build needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/mvcc.proto",
        "proto/etcd.proto",
        "proto/command.proto",
        "proto/health.proto",
        "proto/lock.proto",
        "proto/election.proto",
        "proto/backup.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
