//! Names of interfaces, in the network namespace of the caller.

use rustix::fd::OwnedFd;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketType, socket};

/// Looks names of interfaces up by index, and the other way round.
pub struct Devices {
    /// Any socket does for these ioctls.
    socket: Option<OwnedFd>,
}

impl Devices {
    pub fn new() -> Self {
        Self { socket: socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok() }
    }

    /// The name, or `#INDEX` where no interface here has that index.
    pub fn name(&self, index: u32) -> String {
        self.socket
            .as_ref()
            .and_then(|socket| index_to_name(socket, index).ok())
            .unwrap_or_else(|| format!("#{index}"))
    }

    /// The index of the interface of that name.
    pub fn index(&self, name: &str) -> Option<u32> {
        name_to_index(self.socket.as_ref()?, name).ok()
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self::new()
    }
}
