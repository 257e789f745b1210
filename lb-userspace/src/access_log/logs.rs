//! The access logs of all listeners.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::open::{OpenError, check_writable};
use super::writer::LogFile;
use super::{Format, Kind, Record};
use crate::model::AccessLog;

/// Listeners that are configured no more, but whose connections may still end.
const MAX_GONE: usize = 32;

/// What is left may be written for that long when the logs are dropped without [`AccessLogs::close`].
const LINGER: Duration = Duration::from_secs(1);

/// The access logs of all listeners. To be shared between threads; none of the calls waits for a file but `open`,
/// `reconfigure` and `close`.
pub struct AccessLogs {
    state: RwLock<State>,
    /// Held while the state is made anew, since that opens files.
    changing: Mutex<()>,
    dropped: Arc<AtomicU64>,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    current: HashMap<Arc<str>, Arc<[Log]>>,
    /// The latest last.
    gone: VecDeque<(Arc<str>, Arc<[Log]>)>,
}

/// A log of a listener.
struct Log {
    file: Arc<LogFile>,
    format: Format,
    periodic: bool,
    on_connect: bool,
    on_start: bool,
}

impl Log {
    fn wants(&self, kind: Kind) -> bool {
        match kind {
            Kind::Start => self.on_start,
            Kind::Connected => self.on_connect,
            Kind::Periodic => self.periodic,
            Kind::End => true,
        }
    }
}

impl AccessLogs {
    /// Opens the logs of each listener. Two logs with the same path are one file.
    pub fn open<'a>(
        listeners: impl IntoIterator<Item = (&'a str, &'a [AccessLog])>,
    ) -> Result<Self, OpenError> {
        let dropped = Arc::new(AtomicU64::new(0));
        let state = State::default().successor(listeners, &dropped)?;
        let closed = AtomicBool::new(false);
        Ok(Self { state: RwLock::new(state), changing: Mutex::new(()), dropped, closed })
    }

    /// Replaces the logs by those of another configuration. Files that are in use already stay open. A listener that
    /// is gone keeps its logs for the connections that it still has. After an error all is as before.
    pub fn reconfigure<'a>(
        &self,
        listeners: impl IntoIterator<Item = (&'a str, &'a [AccessLog])>,
    ) -> Result<(), OpenError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.read(|state| state.successor(listeners, &self.dropped))?;
        let old = std::mem::replace(&mut *self.state.write().unwrap_or_else(PoisonError::into_inner), state);
        drop(old);
        Ok(())
    }

    /// Writes a line to each log of the record's listener that wants its kind. Never blocks.
    pub fn log(&self, record: &Record) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let Some(logs) = self.read(|state| state.logs(&record.listener).cloned()) else { return };
        LINE.with_borrow_mut(|line| {
            for log in logs.iter().filter(|log| log.wants(record.kind)) {
                line.clear();
                log.format.render(record, line);
                log.file.send(line);
            }
        });
    }

    /// Whether a record of that kind would be written at all.
    pub fn wants(&self, listener: &str, kind: Kind) -> bool {
        self.read(|state| state.logs(listener).is_some_and(|logs| logs.iter().any(|log| log.wants(kind))))
    }

    /// Has all files opened anew, for a log rotation that has renamed them. Lines from now on go to the new files; one
    /// that cannot be opened goes on in the old file, with a warning in the log.
    pub fn reopen(&self) {
        self.read(|state| state.files().into_values().for_each(|file| file.reopen()));
    }

    /// Lines that were not written since the start: the file did not take them fast enough, or not at all.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Counts lines that were not even made.
    pub fn count_dropped(&self, lines: u64) {
        self.dropped.fetch_add(lines, Relaxed);
    }

    /// Lines that were not written to each file that is in use, since it was opened first.
    pub fn dropped_by_path(&self) -> BTreeMap<PathBuf, u64> {
        self.read(|state| {
            state.files().into_iter().map(|(path, file)| (path.to_owned(), file.dropped())).collect()
        })
    }

    /// Writes what is left, for at most `timeout`; `false`: some of it could not be written in time. Lines that come
    /// later are dropped.
    pub fn close(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.closed.store(true, Relaxed);
        let files: Vec<Arc<LogFile>> = self.read(|state| state.files().into_values().cloned().collect());
        files.iter().for_each(|file| file.close(deadline));
        files.iter().all(|file| file.wait_idle(deadline))
    }

    fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for AccessLogs {
    fn drop(&mut self) {
        if !*self.closed.get_mut() {
            self.close(LINGER);
        }
    }
}

impl State {
    fn logs(&self, listener: &str) -> Option<&Arc<[Log]>> {
        let gone = || self.gone.iter().find(|(name, _)| &**name == listener).map(|(_, logs)| logs);
        self.current.get(listener).or_else(gone)
    }

    /// Every file once.
    fn files(&self) -> BTreeMap<&Path, &Arc<LogFile>> {
        let gone = self.gone.iter().map(|(_, logs)| logs);
        let logs = self.current.values().chain(gone).flat_map(|logs| logs.iter());
        logs.map(|log| (log.file.path(), &log.file)).collect()
    }

    /// The state with the logs of another configuration.
    fn successor<'a>(
        &self,
        listeners: impl IntoIterator<Item = (&'a str, &'a [AccessLog])>,
        dropped: &Arc<AtomicU64>,
    ) -> Result<Self, OpenError> {
        let listeners: Vec<(&str, &[AccessLog])> = listeners.into_iter().collect();
        let old = self.files();
        let mut files: BTreeMap<&Path, Arc<LogFile>> = BTreeMap::new();
        let paths = || listeners.iter().flat_map(|(_, logs)| logs.iter()).map(|log| log.path.as_path());
        // All are checked first: if one cannot be opened, none is created.
        for path in paths().filter(|path| !old.contains_key(path)) {
            check_writable(path)?;
        }
        for path in paths() {
            if !files.contains_key(path) {
                let file = match old.get(path) {
                    Some(file) => Arc::clone(file),
                    None => Arc::new(LogFile::open(path, dropped)?),
                };
                files.insert(path, file);
            }
        }
        let of_listener = |logs: &[AccessLog]| -> Arc<[Log]> {
            logs.iter()
                .map(|log| Log {
                    file: Arc::clone(&files[log.path.as_path()]),
                    format: log.format.clone(),
                    periodic: log.flush_interval.is_some(),
                    on_connect: log.on_connect,
                    on_start: log.on_start,
                })
                .collect()
        };
        let current: HashMap<Arc<str>, Arc<[Log]>> =
            listeners.iter().map(|(name, logs)| (Arc::from(*name), of_listener(logs))).collect();
        let known = self.gone.iter().map(|(name, logs)| (name, logs)).chain(&self.current);
        let gone = known.filter(|(name, _)| !current.contains_key(*name));
        let mut gone: VecDeque<_> = gone.map(|(name, logs)| (Arc::clone(name), Arc::clone(logs))).collect();
        gone.drain(..gone.len().saturating_sub(MAX_GONE));
        Ok(Self { current, gone })
    }
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
