//! The file system of pins.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, StatFs, statfs};
use rustix::mount::{MountFlags, mount};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0xcafe_4a11;
/// Where it is mounted if it is nowhere.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes sure that `directory` can hold pins: mounts bpffs at `/sys/fs/bpf` if it is to be there and is missing.
pub fn prepare(directory: &Path) -> Result<()> {
    if !is_bpffs(directory) && directory.starts_with(MOUNT_POINT) {
        mount("bpf", MOUNT_POINT, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("mounting the BPF file system at {MOUNT_POINT} (for the pins)"))?;
    }
    if !is_bpffs(directory) {
        bail!(
            "{} is not on a BPF file system: mount one there (mount -t bpf bpf DIR) or pass --bpffs with a place \
             below {MOUNT_POINT}",
            directory.display()
        );
    }
    let mode = Mode::from(0o700);
    match rustix::fs::mkdir(directory, mode) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(_) => {
            std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))
        }
    }
}

/// Whether the nearest existing ancestor of `path` lies on bpffs.
fn is_bpffs(path: &Path) -> bool {
    for ancestor in path.ancestors() {
        if let Ok(StatFs { f_type, .. }) = statfs(ancestor) {
            return f_type as u64 & 0xffff_ffff == MAGIC;
        }
    }
    false
}
