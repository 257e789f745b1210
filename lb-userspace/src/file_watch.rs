//! Whether what a path leads to has changed.
//!
//! The path is looked at four times a second, which costs one stat(2), whatever lies behind it. inotify would not do
//! with less: it watches inodes and directories, not paths. A key of a mounted ConfigMap is a link through a link
//! (`..data`) that is swapped, so each directory on the way would have to be watched, anew after every swap; and it is
//! blind to changes that another host makes to a network file system.

use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

/// From one look to the next. What changed has settled when two looks show the same, so it is told within two of them.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// Looks after which what keeps changing is told of nevertheless.
const MAX_UNSETTLED: u32 = 20;

/// Bytes of the file that count, more than any file of ours may have.
const MAX_CONTENT: u64 = 8 << 20;

/// A path, and what it led to when that was last told of.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    content: Content,
    stamp: Stamp,
    /// Looks since the first that showed something new; 0: nothing new.
    unsettled: u32,
}

/// What tells one state of a file from another without reading it; `None`: there is none. A swapped link leads to
/// another inode. The time of the last change of the inode is there for those who set the other time back.
type Stamp = Option<[i128; 7]>;

/// Of the file's bytes; an error is one that reading met.
type Content = Result<u64, io::ErrorKind>;

/// Says each time that what is watched has changed; never without a watch. A task of its own looks at it, since a look takes
/// longer than a loop with other things to do waits. Needs a tokio runtime.
pub fn follow(watch: Option<FileWatch>) -> mpsc::Receiver<()> {
    // One that was not heard yet stands for all.
    let (changed, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let Some(mut watch) = watch else { return changed.closed().await };
        loop {
            watch.changed().await;
            if let Err(mpsc::error::TrySendError::Closed(())) = changed.try_send(()) {
                return;
            }
        }
    });
    receiver
}

impl FileWatch {
    /// What the path leads to now is what changes are from.
    pub fn new(path: PathBuf) -> Self {
        let stamp = stamp(&path);
        // A write in the same tick of the file system's clock would leave the stamp as it is, so it is looked at again.
        Self { content: content(&path), stamp, unsettled: 1, path }
    }

    /// Completes when the bytes that the path leads to are others than before, or can or cannot be read any more; not
    /// while they are still being written, for up to five seconds. Cancel safe.
    pub async fn changed(&mut self) {
        loop {
            sleep(INTERVAL).await;
            if self.look() {
                return;
            }
        }
    }

    fn look(&mut self) -> bool {
        let stamp = stamp(&self.path);
        let settled = stamp == self.stamp;
        self.stamp = stamp;
        if settled && self.unsettled == 0 {
            return false;
        }
        self.unsettled += 1;
        if !settled && self.unsettled < MAX_UNSETTLED {
            return false;
        }
        let content = content(&self.path);
        // What could not be read may be readable without a change of the stamp.
        self.unsettled = u32::from(content.is_err() && self.stamp.is_some());
        std::mem::replace(&mut self.content, content) != content
    }
}

fn stamp(path: &Path) -> Stamp {
    let of = |metadata: Metadata| {
        [
            metadata.dev().into(),
            metadata.ino().into(),
            metadata.size().into(),
            metadata.mtime().into(),
            metadata.mtime_nsec().into(),
            metadata.ctime().into(),
            metadata.ctime_nsec().into(),
        ]
    };
    fs::metadata(path).ok().map(of)
}

fn content(path: &Path) -> Content {
    let read = || {
        // Opening anything else may wait for ever.
        if !fs::metadata(path)?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut file = File::open(path)?.take(MAX_CONTENT);
        let mut hasher = DefaultHasher::new();
        let mut buffer = [0; 16 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.finish()),
                length => hasher.write(&buffer[..length]),
            }
        }
    };
    read().map_err(|error: io::Error| error.kind())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::timeout;

    use super::*;

    /// A directory of its own, gone with this value.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let dir = std::env::temp_dir().join(format!("headgate-watch-{}-{number}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Whether a change is told, and once alone.
    fn told(watch: &mut FileWatch) -> bool {
        (0..4).filter(|_| watch.look()).count() == 1
    }

    fn stays(watch: &mut FileWatch) -> bool {
        (0..4).all(|_| !watch.look())
    }

    #[test]
    fn a_write_a_rename_and_an_end_are_each_told_once() {
        let scratch = Scratch::new();
        let path = scratch.write("file", "one");
        let mut watch = FileWatch::new(path.clone());
        // Of the same length, and likely in the same tick.
        scratch.write("file", "two");
        assert!(told(&mut watch));
        scratch.write("next", "three");
        fs::rename(scratch.0.join("next"), &path).unwrap();
        assert!(told(&mut watch));
        fs::remove_file(&path).unwrap();
        assert!(told(&mut watch));
        scratch.write("file", "three");
        assert!(told(&mut watch));
    }

    #[test]
    fn the_same_bytes_are_no_change() {
        let scratch = Scratch::new();
        let path = scratch.write("file", "one");
        let mut watch = FileWatch::new(path.clone());
        scratch.write("next", "one");
        fs::rename(scratch.0.join("next"), &path).unwrap();
        assert!(stays(&mut watch));
        fs::remove_file(&path).unwrap();
        scratch.write("file", "one");
        assert!(stays(&mut watch));
    }

    #[test]
    fn a_config_map_swaps_a_link_in_the_middle() {
        let scratch = Scratch::new();
        scratch.write("..1/file", "one");
        scratch.write("..2/file", "two");
        symlink("..1", scratch.0.join("..data")).unwrap();
        let path = scratch.0.join("file");
        symlink("..data/file", &path).unwrap();
        let mut watch = FileWatch::new(path);
        assert!(stays(&mut watch));
        symlink("..2", scratch.0.join("..data_tmp")).unwrap();
        fs::rename(scratch.0.join("..data_tmp"), scratch.0.join("..data")).unwrap();
        fs::remove_dir_all(scratch.0.join("..1")).unwrap();
        assert!(told(&mut watch));
    }

    #[test]
    fn what_is_being_written_is_told_of_when_it_is_whole() {
        let scratch = Scratch::new();
        let path = scratch.write("file", "");
        let mut watch = FileWatch::new(path);
        for length in 1..10 {
            scratch.write("file", &"x".repeat(length));
            assert!(!watch.look(), "{length}");
        }
        assert!(told(&mut watch));
    }

    #[test]
    fn what_never_settles_is_told_of_too() {
        let scratch = Scratch::new();
        let path = scratch.write("file", "");
        let mut watch = FileWatch::new(path);
        let mut looks = (1..=100).map(|length| {
            scratch.write("file", &"x".repeat(length));
            watch.look()
        });
        assert!(looks.position(|told| told).is_some_and(|position| position < 20));
    }

    #[test]
    fn only_files_are_read() {
        let scratch = Scratch::new();
        let path = scratch.0.join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let mut watch = FileWatch::new(path.clone());
        assert!(stays(&mut watch));
        fs::remove_file(&path).unwrap();
        scratch.write("fifo", "one");
        assert!(told(&mut watch));
    }

    #[tokio::test]
    async fn a_change_is_told_in_time_and_a_cancelled_wait_loses_nothing() {
        let scratch = Scratch::new();
        let mut watch = FileWatch::new(scratch.write("file", "one"));
        assert!(timeout(INTERVAL * 4, watch.changed()).await.is_err(), "a change of nothing");
        scratch.write("file", "other");
        let told = async { while timeout(INTERVAL * 3 / 2, watch.changed()).await.is_err() {} };
        // Much longer than it takes.
        timeout(Duration::from_secs(10), told).await.expect("a change");
    }
}
