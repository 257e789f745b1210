//! What a CPU does for packets that are sent and received on it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use procfs::process::{Process, all_processes};
use rustix::thread::sched_getcpu;
use rustix::time::{ClockId, clock_gettime};

/// Counts the CPU time of the thread that sends, in which the kernel also receives, and of the kernel's own thread that goes
/// on receiving where that takes too long. What other processes do on the CPU meanwhile is not in it.
pub(crate) struct Clock {
    ksoftirqd: Process,
}

impl Clock {
    /// For the CPU that the calling thread stays on.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("ksoftirqd/{}", sched_getcpu());
        // Processes may end meanwhile.
        let mut all = all_processes()?.flatten();
        let ksoftirqd = all.find(|process| process.stat().is_ok_and(|stat| stat.comm == name));
        Ok(Self { ksoftirqd: ksoftirqd.with_context(|| format!("no {name}"))? })
    }

    /// CPU time so far, of the calling thread and the kernel's.
    pub(crate) fn now(&self) -> Result<Duration> {
        let own = clock_gettime(ClockId::ThreadCPUTime);
        let others = self.ksoftirqd.schedstat().context("no CPU time of the kernel's threads")?;
        let own = Duration::new(own.tv_sec as u64, own.tv_nsec as u32);
        Ok(own + Duration::from_nanos(others.sum_exec_runtime))
    }
}
