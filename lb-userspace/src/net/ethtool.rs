//! Questions to a device's driver, by the `SIOCETHTOOL` ioctl (`<linux/ethtool.h>`).
//!
//! Sysfs would name the driver too, but shows the devices of the namespace it was mounted in.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Whether the device takes the outer VLAN tag out of received frames, where an XDP program cannot see it.
pub fn rx_vlan_offload(name: &str) -> Result<bool> {
    has_flag(name, ETH_FLAG_RXVLAN)
}

/// Whether the device merges received segments into packets that cannot be sent on (LRO, unlike GRO).
pub(super) fn large_receive_offload(name: &str) -> Result<bool> {
    has_flag(name, ETH_FLAG_LRO)
}

fn has_flag(name: &str, flag: u32) -> Result<bool> {
    let mut value = EthtoolValue { cmd: ETHTOOL_GFLAGS, data: 0 };
    match ethtool(name, &mut value) {
        Ok(()) => Ok(value.data & flag != 0),
        // A device without ethtool operations has no offloads to switch.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read the offloads of {name} (ethtool -k)")),
    }
}

/// The name of the device's driver; `None` if the device tells none.
pub fn driver(name: &str) -> Result<Option<String>> {
    let mut info = EthtoolDrvinfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    match ethtool(name, &mut info) {
        Ok(()) => Ok(text(&info.driver)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the driver of {name} (ethtool -i)")),
    }
}

/// The text up to the first zero byte.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// # Safety
/// `cmd` must come first and be a command whose answer the kernel writes within the type, whatever its bytes.
unsafe trait EthtoolCommand {}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

// SAFETY: the layout of `struct ethtool_value`, made with ETHTOOL_GFLAGS only, that answers with one.
unsafe impl EthtoolCommand for EthtoolValue {}

/// `struct ethtool_drvinfo`; `rest` holds six more texts and five numbers.
#[repr(C)]
struct EthtoolDrvinfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

// SAFETY: 196 bytes as `struct ethtool_drvinfo`, made with ETHTOOL_GDRVINFO only, that answers with one.
unsafe impl EthtoolCommand for EthtoolDrvinfo {}

fn ethtool<T: EthtoolCommand>(name: &str, command: &mut T) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is made of integers, arrays and a pointer, for all of which zero bytes are a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *command).cast();
    // SAFETY: the descriptor is open; `request` and the `command` it points to live across the call, and
    // `EthtoolCommand` promises that the kernel writes nothing beyond it.
    let result = unsafe {
        libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_at_the_zero_byte() {
        assert_eq!(text(b"veth\0\0rest"), Some("veth".to_owned()));
        assert_eq!(text(b"full"), Some("full".to_owned()));
        assert_eq!(text(b"\0"), None);
    }

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size_of::<EthtoolValue>(), 8);
        assert_eq!(size_of::<EthtoolDrvinfo>(), 196);
    }

    #[test]
    fn a_name_that_no_device_can_have_is_an_error() {
        for name in ["a-name-of-17-chars", "no-such-device"] {
            assert!(driver(name).unwrap_err().to_string().contains(name));
            assert!(rx_vlan_offload(name).is_err());
        }
    }
}
