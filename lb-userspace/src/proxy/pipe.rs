//! Pipes for splice(2), and the pool that keeps some between uses.
//!
//! A pipe belongs to a connection only while it moves bytes: an idle connection holds none.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe should hold, in bytes. More than the default of 64 KiB saves system calls on fast links; the
/// buffers are the network stack's own pages, so an empty pipe costs only its ring (2.5 KiB).
const CAPACITY: usize = 256 * 1024;

/// Pipes kept for the next use, at most.
const KEPT: usize = 64;

/// A pipe with the count of what is in it.
///
/// EAGAIN of splice(2) does not say which of its two ends was meant. Here it does: it fills the pipe only
/// when that is empty, and drains it only when it is not, so it is always the socket.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused beyond the user's share (fs.pipe-user-pages-soft): the default size does as well.
        if let Err(error) = fcntl_setpipe_size(&write, CAPACITY) {
            log::debug!("a pipe stays at its default size: {error}");
        }
        Ok(Self { read, write, held: 0 })
    }
}

/// Pipes not in use.
#[derive(Default)]
pub(super) struct PipePool(Mutex<Vec<Pipe>>);

impl PipePool {
    /// An empty pipe. Fails when a new one is needed and no descriptor is left.
    pub(super) fn take(&self) -> io::Result<Lease<'_>> {
        let kept = self.0.lock().expect("no holder panics").pop();
        let pipe = kept.map_or_else(Pipe::new, Ok)?;
        Ok(Lease { pipe: Some(pipe), pool: self })
    }
}

/// A pipe in use. It returns to the pool if it is empty at the end.
pub(super) struct Lease<'a> {
    pipe: Option<Pipe>,
    pool: &'a PipePool,
}

impl Lease<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.pipe.as_ref().expect("there until dropped").held == 0
    }

    /// Moves what `socket` has received into the empty pipe; 0 means that its peer has sent a FIN.
    /// `WouldBlock`: there is nothing now.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let pipe = self.pipe.as_mut().expect("there until dropped");
        assert_eq!(pipe.held, 0, "EAGAIN must mean the socket");
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = retry_on_intr(|| splice(&socket, None, &pipe.write, None, CAPACITY, flags))?;
        pipe.held = moved;
        Ok(moved)
    }

    /// Moves bytes out of the pipe, which is not empty, into `socket`. `WouldBlock`: its send buffer is full.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let pipe = self.pipe.as_mut().expect("there until dropped");
        assert_ne!(pipe.held, 0, "EAGAIN must mean the socket");
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = retry_on_intr(|| splice(&pipe.read, None, &socket, None, pipe.held, flags))?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        pipe.held -= moved;
        Ok(moved)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take_if(|pipe| pipe.held == 0) else { return };
        let mut kept = self.pool.0.lock().expect("no holder panics");
        if kept.len() < KEPT {
            kept.push(pipe);
        }
    }
}
