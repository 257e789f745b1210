//! Lines on their way to a file: a bounded queue between those who log and the thread that writes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait, those being written included.
pub(super) const CAPACITY: usize = 4 << 20;

/// A write is not put off any longer once there is that much.
const ENOUGH: usize = 64 << 10;

/// How long a line waits for others to be written with it.
const GATHER: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to do for the thread.
    work: Condvar,
    /// All has been done.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// Bytes of the batch being written.
    in_flight: usize,
    reopen: bool,
    reopening: bool,
    /// Until when the thread may go on writing; `None`: for as long as it takes.
    closing: Option<Instant>,
}

/// Lines to be written at once.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Where each line ends.
    pub(super) ends: Vec<u32>,
}

impl Batch {
    fn cost(&self) -> usize {
        self.bytes.len() + size_of_val(&self.ends[..])
    }
}

/// What the thread does next.
pub(super) enum Work {
    Write(Batch),
    Reopen,
    /// All is written, and nothing comes after it.
    End,
}

impl Queue {
    /// Appends a line; `false`: it does not fit, or the queue is closed. Does not wait for the thread.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let mut state = self.lock();
        let cost = state.waiting.cost() + state.in_flight + line.len() + size_of::<u32>();
        if cost > CAPACITY || state.closing.is_some() {
            return false;
        }
        let before = state.waiting.bytes.len();
        state.waiting.bytes.extend_from_slice(line);
        // It fits: the capacity is far below 4 GiB.
        let after = state.waiting.bytes.len();
        state.waiting.ends.push(after as u32);
        let first = state.waiting.ends.len() == 1;
        drop(state);
        if first || (before < ENOUGH && after >= ENOUGH) {
            self.work.notify_one();
        }
        true
    }

    /// Has the thread open the file anew, unless the queue is closed.
    pub(super) fn reopen(&self) {
        let mut state = self.lock();
        state.reopen = state.closing.is_none();
        drop(state);
        self.work.notify_one();
    }

    /// Lets the thread end when all is written, or when `deadline` has passed and the file does not take more. Of
    /// several deadlines the first one holds.
    pub(super) fn close(&self, deadline: Instant) {
        self.lock().closing.get_or_insert(deadline);
        self.work.notify_one();
    }

    /// Whether the thread has had its time to write what was left when the queue was closed.
    pub(super) fn is_overdue(&self) -> bool {
        self.lock().closing.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Waits until nothing is left to do; `false`: until `deadline` there was something.
    pub(super) fn wait_idle(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if state.waiting.ends.is_empty() && state.in_flight == 0 && !state.reopen && !state.reopening {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// For the thread: waits for work. A file is opened anew before anything else is written. `spare` is an old batch,
    /// whose memory is used again unless it is much.
    pub(super) fn next(&self, mut spare: Batch) -> Work {
        let mut state = self.lock();
        state.in_flight = 0;
        state.reopening = false;
        self.idle.notify_all();
        loop {
            let nothing =
                |state: &mut State| state.waiting.ends.is_empty() && !state.reopen && state.closing.is_none();
            state = self.work.wait_while(state, nothing).unwrap_or_else(PoisonError::into_inner);
            if state.reopen {
                state.reopen = false;
                state.reopening = true;
                return Work::Reopen;
            }
            if state.waiting.ends.is_empty() {
                return Work::End;
            }
            let gathering = |state: &mut State| {
                state.waiting.bytes.len() < ENOUGH && !state.reopen && state.closing.is_none()
            };
            let waited = self.work.wait_timeout_while(state, GATHER, gathering);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !state.reopen {
                break;
            }
        }
        if spare.bytes.capacity() > 4 * ENOUGH {
            spare = Batch::default();
        }
        spare.bytes.clear();
        spare.ends.clear();
        let batch = std::mem::replace(&mut state.waiting, spare);
        state.in_flight = batch.cost();
        Work::Write(batch)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
