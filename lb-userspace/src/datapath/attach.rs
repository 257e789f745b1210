//! Programs on interfaces. A link is pinned by the interface's index, so that it outlives the agent; the next one
//! puts its program into it without a gap.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;

use crate::datapath::object::{
    Pins, TC_L3_PROGRAM, TC_PROGRAM, XDP_FRAGS_PROGRAM, XDP_PROGRAM, tc_program, xdp_program,
};
use crate::net::Link;

/// Our place among the clsact filters of an interface (kernels before 6.6): first, and a handle that says whose.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x4847);

/// Attaches an XDP program in native mode, or puts it in the place of an earlier agent's.
pub fn attach_xdp(ebpf: &mut Ebpf, pins: &Pins, link: &Link, program: &str) -> Result<()> {
    let pin = xdp_pin(pins, link.index);
    if replace_xdp(ebpf, &pin, program)? {
        return Ok(());
    }
    let program = xdp_program(ebpf, program)?;
    let id = program.attach_to_if_index(link.index, XdpMode::Driver)?;
    let fd = FdLink::try_from(program.take_link(id)?)?;
    repin(fd, &pin)
}

/// Puts an XDP program into a pinned link; whether there is one that takes it.
fn replace_xdp(ebpf: &mut Ebpf, pin: &Path, program: &str) -> Result<bool> {
    let program = xdp_program(ebpf, program)?;
    if let Some(old) = pinned(pin)?
        && let Ok(old) = XdpLink::try_from(old)
        && let Ok(id) = program.attach_to_link(old)
    {
        let _ = program.take_link(id)?;
        return Ok(true);
    }
    Ok(false)
}

/// Puts the programs of `ebpf` in the place of those that are on an interface. Where the XDP program cannot be replaced it
/// goes: the TC program behind it takes all.
pub fn replace(ebpf: &mut Ebpf, pins: &Pins, link: &Link) -> Result<()> {
    if tc_pin(pins, link.index).exists() {
        attach_tc(ebpf, pins, link)?;
    }
    let pin = xdp_pin(pins, link.index);
    if !pin.exists() || replace_xdp(ebpf, &pin, XDP_PROGRAM)? || replace_xdp(ebpf, &pin, XDP_FRAGS_PROGRAM)? {
        return Ok(());
    }
    unpin(&pin)?;
    bail!("the XDP program cannot be replaced")
}

/// Attaches the TC program at ingress: by TCX, or by clsact where the kernel has no TCX.
pub fn attach_tc(ebpf: &mut Ebpf, pins: &Pins, link: &Link) -> Result<()> {
    let program = tc_program(ebpf, if link.ethernet { TC_PROGRAM } else { TC_L3_PROGRAM })?;
    let pin = tc_pin(pins, link.index);
    if !has_tcx()? {
        return attach_clsact(program, link, &pin);
    }
    if let Some(old) = pinned(&pin)?
        && let Ok(old) = SchedClassifierLink::try_from(old)
        && let Ok(id) = program.attach_to_link(old)
    {
        let _ = program.take_link(id)?;
        return Ok(());
    }
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(&link.name, TcAttachType::Ingress, first)?;
    let fd = FdLink::try_from(program.take_link(id)?)?;
    repin(fd, &pin)
}

/// A clsact filter cannot be pinned; the program is, in its stead, to say that the filter is this instance's.
fn attach_clsact(program: &mut SchedClassifier, link: &Link, pin: &Path) -> Result<()> {
    match qdisc_add_clsact(&link.name) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        // The kernel's own word for a qdisc that is there.
        Err(TcError::NetlinkError(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        ..NlOptions::default()
    });
    let id = match program.attach_with_options(&link.name, TcAttachType::Ingress, options) {
        Ok(id) => id,
        // An earlier agent's: replaced in place.
        Err(_) => program.attach_to_link(clsact_link(&link.name)?)?,
    };
    // The filter holds the program by itself; a dropped link would take it away.
    std::mem::forget(program.take_link(id)?);
    let _ = std::fs::remove_file(pin);
    program.pin(pin).with_context(|| format!("pinning {}", pin.display()))
}

fn clsact_link(name: &str) -> Result<SchedClassifierLink> {
    Ok(SchedClassifierLink::attached(name, TcAttachType::Ingress, CLSACT_PRIORITY, CLSACT_HANDLE, None)?)
}

/// Takes the XDP program off an interface, if it is on it; the TC program behind it goes on.
pub fn detach_xdp(pins: &Pins, index: u32) -> Result<()> {
    unpin(&xdp_pin(pins, index)).map(drop)
}

/// Takes this instance's programs off an interface, if they are on it. `name`: the interface's, if it is still there.
pub fn detach(pins: &Pins, index: u32, name: Option<&str>) -> Result<()> {
    unpin(&xdp_pin(pins, index))?;
    if unpin(&tc_pin(pins, index))?
        && let Some(name) = name
        && !has_tcx()?
    {
        // Dropping it detaches.
        drop(clsact_link(name)?);
    }
    Ok(())
}

/// Whether there was something.
fn unpin(pin: &Path) -> Result<bool> {
    match std::fs::remove_file(pin) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", pin.display())),
    }
}

/// Indices of the interfaces that links are pinned for.
pub fn attached(pins: &Pins) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(pins.links()) else { return Vec::new() };
    let mut indices: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.split_once('-')?.1.parse().ok())
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

fn has_tcx() -> Result<bool> {
    Ok(KernelVersion::current().context("asking for the kernel's version")? >= KernelVersion::new(6, 6, 0))
}

fn xdp_pin(pins: &Pins, index: u32) -> PathBuf {
    pins.links().join(format!("xdp-{index}"))
}

fn tc_pin(pins: &Pins, index: u32) -> PathBuf {
    pins.links().join(format!("tc-{index}"))
}

fn pinned(pin: &Path) -> Result<Option<FdLink>> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("opening {}", pin.display())),
    }
}

/// Pins a link in the place of one that is of no use any more (its device was made anew).
fn repin(link: FdLink, pin: &Path) -> Result<()> {
    let _ = std::fs::remove_file(pin);
    link.pin(pin).with_context(|| format!("pinning {}", pin.display()))?;
    Ok(())
}
