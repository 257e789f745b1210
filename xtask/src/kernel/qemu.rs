//! Running a guest to its end.

use std::{
    io::{BufRead as _, BufReader, Write as _, stdout},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::Mode;
use crate::workspace::show;

const MEMORY_MIB: &str = "3072";
const CPUS: &str = "2";

/// What a guest has said.
pub(super) struct Console {
    pub(super) lines: Vec<String>,
    /// Why it did not come to its end. An end says nothing about success.
    pub(super) fault: Option<String>,
}

/// A running QEMU, ended when nobody waits for it any more.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail on one that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a kernel and waits for the end of the guest, or for the end of its time.
pub(super) fn boot(kernel: &Path, initramfs: &Path, mode: Mode) -> Result<Console> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", MEMORY_MIB, "-smp", CPUS]);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    // The console is for the tests' lines; an oops raises the level by itself and ends the guest.
    qemu.args(["-append", "console=ttyS0 loglevel=1 oops=panic panic=-1 mitigations=off"]);
    let root = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
    qemu.args(["-virtfs", root]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guest = Guest(qemu.spawn().with_context(|| format!("cannot start `{}`", show(&qemu)))?);

    let console = BufReader::new(guest.0.stdout.take().context("stdout is piped")?);
    let reader = thread::spawn(move || {
        let mut lines = Vec::new();
        for line in console.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if mode.live {
                // A reader that has gone away is no reason to stop the tests.
                let _ = writeln!(stdout(), "{line}");
            }
            lines.push(line);
        }
        lines
    });
    let deadline = Instant::now() + mode.time_limit;
    let status = loop {
        if let Some(status) = guest.0.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            break None;
        }
        thread::sleep(Duration::from_millis(100));
    };
    // The reader comes to its end with QEMU.
    drop(guest);
    let lines = reader.join().map_err(|_| anyhow!("the reader of the console has panicked"))?;
    if let Some(status) = status {
        ensure!(status.success(), "`{}` failed: {status}", show(&qemu));
    }
    let minutes = mode.time_limit.as_secs() / 60;
    let fault = status.is_none().then(|| {
        format!("the guest did not come to its end within {minutes} minutes: see its last lines above")
    });
    Ok(Console { lines, fault })
}
