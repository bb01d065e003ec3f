//! A disk that is slow for one process: the kernel's throttle of block devices (cgroup v1, `blkio`), set so that an
//! fdatasync takes a chosen multiple of what it takes without. It counts what the process itself submits, which a
//! synced write is; the journal's own writes are the kernel's and are not slowed. The throttle gives out its writes in
//! slices of up to a tenth of a second: the first of a slice are fast and the others wait, so only means are compared.

use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CONTROLLER: &str = "/sys/fs/cgroup/blkio";
const LIMIT: &str = "blkio.throttle.write_iops_device";
/// Of one measurement: before it counts, and what counts; each several slices of the throttle.
const WARM_UP: Duration = Duration::from_millis(500);
const COUNTED: Duration = Duration::from_secs(1);
/// Measurements until the limit is right.
const ROUNDS: usize = 5;
/// Bytes of one write, about an entry of a log.
const ENTRY: [u8; 512] = [7; 512];

/// A group whose disk is slow. Dropped, its processes are free again.
#[derive(Debug)]
pub struct SlowDisk {
    group: PathBuf,
    /// An fdatasync without the limit, and in it, on average.
    pub syncs: [Duration; 2],
}

impl SlowDisk {
    /// Makes one for the device of `folder`; `None` where the machine has no such throttle for it and this user.
    pub fn new(folder: &Path, times: f64) -> Result<Option<Self>> {
        let group = Path::new(CONTROLLER).join(format!("hanse-{}", std::process::id()));
        let device = fs::metadata(folder).context("look at the folder of the data")?.dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        if !Path::new(CONTROLLER).join(LIMIT).exists() || fs::create_dir(&group).is_err() {
            return Ok(None);
        }
        let mut disk = Self {
            group,
            syncs: [Duration::ZERO; 2],
        };
        let free = measure(folder, None)?;
        let wanted = free.as_secs_f64() * times;
        let mut limit = 1.0 / wanted;
        for _ in 0..ROUNDS {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "small and positive"
            )]
            let whole = limit.clamp(1.0, 1e6) as u64;
            // The file system may be on no device of its own that the kernel could throttle.
            if fs::write(disk.group.join(LIMIT), format!("{device} {whole}")).is_err() {
                return Ok(None);
            }
            let slow = measure(folder, Some(&disk.group))?;
            disk.syncs = [free, slow];
            let ratio = slow.as_secs_f64() / wanted;
            if (0.8..1.25).contains(&ratio) {
                return Ok(Some(disk));
            }
            limit *= ratio;
        }
        let [free, slow] = disk.syncs;
        let reached = slow.as_secs_f64() / free.as_secs_f64();
        ensure!(reached > times / 2.0, "the throttle makes {free:?} only {slow:?}");
        Ok(Some(disk))
    }

    /// From now on the disk is slow for this process.
    pub fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).context("limit a member's disk")
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let members = fs::read_to_string(self.group.join("tasks")).unwrap_or_default();
        for task in members.lines() {
            // It may have ended.
            fs::write(Path::new(CONTROLLER).join("tasks"), task).ok();
        }
        if let Err(error) = fs::remove_dir(&self.group) {
            eprintln!("{}: {error}", self.group.display());
        }
    }
}

/// How long an fdatasync takes on average, by a thread in `group`.
fn measure(folder: &Path, group: Option<&Path>) -> Result<Duration> {
    let file = tempfile::NamedTempFile::new_in(folder).context("make a file")?;
    let thread = std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            if let Some(group) = group {
                let own = fs::read_link("/proc/thread-self").context("find this thread")?;
                let own = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
                fs::write(group.join("tasks"), own).context("limit this thread's disk")?;
            }
            syncs(file.as_file())
        });
        measuring.join()
    });
    thread.map_err(|_| anyhow::anyhow!("the measuring thread failed"))?
}

fn syncs(mut file: &File) -> Result<Duration> {
    let mut sync_for = |time: Duration| {
        let (begun, mut count) = (Instant::now(), 0_u32);
        while count == 0 || begun.elapsed() < time {
            file.write_all(&ENTRY).context("write")?;
            file.sync_data().context("sync")?;
            count += 1;
        }
        anyhow::Ok(begun.elapsed() / count)
    };
    sync_for(WARM_UP)?;
    sync_for(COUNTED)
}
