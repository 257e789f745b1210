//! A program whose output is read line by line while it runs.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cmd::{line_of, wait_for};

/// A running program. Dropping it ends it.
#[derive(Debug)]
pub struct Lines {
    line: String,
    child: Child,
    lines: Receiver<String>,
}

impl Lines {
    pub fn of(mut command: Command) -> Result<Self> {
        let line = line_of(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test may have all it waited for.
                let _ = sender.send(line);
            }
        });
        Ok(Self { line, child, lines })
    }

    /// The next line that it prints.
    pub fn next(&self, limit: Duration) -> Result<String> {
        self.lines.recv_timeout(limit).with_context(|| format!("no more lines of `{}`", self.line))
    }

    /// Fails if it prints anything, or ends, within this time.
    pub fn require_silence(&self, time: Duration) -> Result<()> {
        let next = self.lines.recv_timeout(time);
        ensure!(next == Err(RecvTimeoutError::Timeout), "`{}`: {next:?}", self.line);
        Ok(())
    }

    /// Waits for its end: what it printed that was not read yet, and its status.
    pub fn end(mut self, limit: Duration) -> Result<(Vec<String>, ExitStatus)> {
        let status = wait_for(&format!("`{}` ends", self.line), limit, || {
            self.child.try_wait()?.context("it still runs")
        })?;
        // The thread ends with the output, and the channel with the thread.
        Ok((self.lines.iter().collect(), status))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
