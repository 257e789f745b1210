//! All entries of a hash map in a few system calls (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), which aya has not.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::MapData;

/// `enum bpf_cmd` of `linux/bpf.h`.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Entries for each call; more than any bucket holds, or the call fails with `ENOSPC`.
const ENTRIES: u32 = 4096;

/// `struct { ... } batch` of `union bpf_attr`.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` with each entry of a HASH or LRU_HASH map. Entries that come or go meanwhile may be seen or not.
pub fn for_each<K: Pod, V: Pod>(map: &MapData, mut visit: impl FnMut(&K, &V)) -> Result<()> {
    let mut keys = Vec::<K>::with_capacity(ENTRIES as usize);
    let mut values = Vec::<V>::with_capacity(ENTRIES as usize);
    // The kernel's place in the map: a bucket number.
    let mut place = 0u32;
    let mut first = true;
    loop {
        let mut attributes = BatchAttributes {
            in_batch: if first { 0 } else { &raw const place as u64 },
            out_batch: &raw mut place as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: ENTRIES,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes of this command; the buffers have room for `count` keys and values, and the kernel
        // pads no key or value of these sizes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<BatchAttributes>(),
            )
        };
        let error = io::Error::last_os_error();
        let done = result != 0 && error.raw_os_error() == Some(libc::ENOENT);
        if result != 0 && !done {
            if error.raw_os_error() == Some(libc::EINTR) {
                continue;
            }
            return Err(error).context("reading a BPF map");
        }
        // SAFETY: the kernel has written this many, and any bits are a key or value.
        unsafe {
            keys.set_len(attributes.count.min(ENTRIES) as usize);
            values.set_len(attributes.count.min(ENTRIES) as usize);
        }
        for (key, value) in keys.iter().zip(&values) {
            visit(key, value);
        }
        if done {
            return Ok(());
        }
        first = false;
        keys.clear();
        values.clear();
    }
}
