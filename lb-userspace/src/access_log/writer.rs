//! A log file, and the thread that writes to it. Each file has a thread of its own, so that a pipe that nobody reads
//! or a disk that hangs delays neither the other logs nor those who log.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::open::{OpenError, open};
use super::queue::{Batch, Queue, Work};

/// A file whose log is not wanted any more has that long to take what is left.
const LINGER: Duration = Duration::from_secs(1);

/// Lines that were not written, of one file and of all.
pub(super) struct Dropped {
    file: AtomicU64,
    total: Arc<AtomicU64>,
}

impl Dropped {
    fn add(&self, lines: u64) {
        self.file.fetch_add(lines, Relaxed);
        self.total.fetch_add(lines, Relaxed);
    }
}

pub(super) struct LogFile {
    path: PathBuf,
    queue: Arc<Queue>,
    dropped: Arc<Dropped>,
}

impl LogFile {
    /// Lines that are not written are added to `total` too.
    pub(super) fn open(path: &Path, total: &Arc<AtomicU64>) -> Result<Self, OpenError> {
        let started = open(path).and_then(|file| Self::start(path, file, total));
        started.map_err(|error| OpenError::new(path, error))
    }

    fn start(path: &Path, file: File, total: &Arc<AtomicU64>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let dropped = Arc::new(Dropped { file: AtomicU64::new(0), total: Arc::clone(total) });
        let mut writer = Writer {
            path: path.to_owned(),
            file,
            queue: Arc::clone(&queue),
            dropped: Arc::clone(&dropped),
            failing: false,
            torn: false,
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        Ok(Self { path: path.to_owned(), queue, dropped })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Never blocks: a line that does not fit any more is counted and gone.
    pub(super) fn send(&self, line: &[u8]) {
        if !line.is_empty() && !self.queue.push(line) {
            self.dropped.add(1);
        }
    }

    /// Has the thread open the path anew before it writes anything else.
    pub(super) fn reopen(&self) {
        self.queue.reopen();
    }

    /// Takes no more lines. What is left is written until `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        self.queue.close(deadline);
    }

    /// Waits until all is written; `false`: at `deadline` it was not.
    pub(super) fn wait_idle(&self, deadline: Instant) -> bool {
        self.queue.wait_idle(deadline)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.file.load(Relaxed)
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.queue.close(Instant::now() + LINGER);
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    queue: Arc<Queue>,
    dropped: Arc<Dropped>,
    /// The last write has failed, and that has been said.
    failing: bool,
    /// The last line was cut short.
    torn: bool,
}

impl Writer {
    fn run(&mut self) {
        let mut spare = Batch::default();
        loop {
            match self.queue.next(spare) {
                Work::Write(batch) => {
                    self.write(&batch);
                    spare = batch;
                }
                Work::Reopen => {
                    self.reopen();
                    spare = Batch::default();
                }
                Work::End => return,
            }
        }
    }

    fn write(&mut self, batch: &Batch) {
        let (written, result) = self.write_lines(&batch.bytes);
        let whole = batch.ends.partition_point(|end| *end as usize <= written);
        let path = self.path.display();
        match result {
            Ok(()) if self.failing => log::warn!("access log {path}: lines are written again"),
            Ok(()) => {}
            Err(error) => {
                self.dropped.add((batch.ends.len() - whole) as u64);
                let start_of_next = whole.checked_sub(1).map_or(0, |last| batch.ends[last] as usize);
                self.torn |= written > start_of_next;
                if !self.failing {
                    log::warn!(
                        "access log {path}: {error}; lines are dropped until it can be written to again"
                    );
                }
                self.failing = true;
                return;
            }
        }
        self.failing = false;
    }

    /// How many bytes were written.
    fn write_lines(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        if self.torn {
            match self.write_all(b"\n") {
                (_, Ok(())) => self.torn = false,
                (_, error) => return (0, error),
            }
        }
        self.write_all(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < bytes.len() {
            match self.file.write(&bytes[written..]) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares the descriptor has made it non-blocking, as terminals' and pipes' often are.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.queue.is_overdue() => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    fn reopen(&mut self) {
        match open(&self.path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
            }
            Err(error) => {
                let error = OpenError::new(&self.path, error);
                log::warn!("{error}; it goes on in the file that was open before");
            }
        }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
