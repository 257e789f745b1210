//! A point-to-point link without Ethernet: two tun devices, and a thread that carries packets between them.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Setter, ioctl, opcode};

use crate::netns::Namespace;

/// How often the thread looks whether it should end, nanoseconds.
const LOOK: i64 = 100_000_000;
/// The largest IP packet.
const LARGEST: usize = 1 << 16;

/// The two devices; dropping it takes them away.
#[derive(Debug)]
pub struct TunLink {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TunLink {
    /// Joins two hosts; each device is up, has this MTU and no address of its own.
    pub fn join(ends: [(&Namespace, &str); 2], mtu: u32) -> Result<Self> {
        let [near, far] = ends.map(|(host, device)| -> Result<File> {
            let file = host.within(|| open(device))?.with_context(|| format!("tun device {device}"))?;
            host.ip(&["link", "set", device, "mtu", &mtu.to_string(), "up"])?;
            Ok(file)
        });
        let files = [near?, far?];
        let end = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&end);
        let thread = std::thread::spawn(move || carry(&files, &seen));
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for TunLink {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread between two tun devices panicked");
        }
    }
}

/// Makes a device in the thread's own namespace; it lives as long as the file.
fn open(device: &str) -> Result<File> {
    // O_NONBLOCK
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
    let request = Request::new(device);
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`; `Request` has its size, and the kernel keeps no pointer
    // to it.
    unsafe { ioctl(&file, Setter::<{ opcode::write::<i32>(b'T', 202) }, Request>::new(request)) }?;
    Ok(file)
}

/// `struct ifreq` of linux/if.h with its flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

impl Request {
    fn new(device: &str) -> Self {
        // linux/if_tun.h: IFF_TUN is IP without Ethernet, IFF_NO_PI without the four bytes in front.
        const IFF_TUN: i16 = 0x0001;
        const IFF_NO_PI: i16 = 0x1000;
        let mut name = [0; 16];
        name[..device.len()].copy_from_slice(device.as_bytes());
        Self { name, flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] }
    }
}

/// Carries packets both ways until told to end.
fn carry(files: &[File; 2], end: &AtomicBool) {
    let mut packet = vec![0; LARGEST];
    while !end.load(Ordering::Relaxed) {
        let mut wait = files.each_ref().map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN));
        let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK };
        if poll(&mut wait, Some(&timeout)).is_err() {
            continue;
        }
        for (mut from, mut to) in [(&files[0], &files[1]), (&files[1], &files[0])] {
            loop {
                let length = match from.read(&mut packet) {
                    Ok(length) => length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // The namespace and its device are on their way out.
                    Err(_) => return,
                };
                // A device that is down or full loses packets, as a wire does.
                let _ = to.write(&packet[..length]);
            }
        }
    }
}
