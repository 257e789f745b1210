//! The few atomic operations that the datapath needs, on fields of map values.
//!
//! The BPF target of rustc has atomic loads and stores, but no read-modify-write of the standard library; there
//! the intrinsics stand in (BPF instruction set, cpu v3: kernel 5.12).

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::{AcqRel, Acquire, SeqCst};

/// Compare-and-set; whether it was done.
///
/// # Safety
/// `at` is valid for reads and writes, aligned to 8, and only accessed atomically meanwhile.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_cxchg};
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(at, old, new).1
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        AtomicU64::from_ptr(at).compare_exchange(old, new, AcqRel, Acquire).is_ok()
    }
}

/// Stores `new`, after everything that was written before it (a full barrier, on every architecture); the old value.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub(crate) unsafe fn exchange(at: *mut u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xchg};
        atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(at, new)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        AtomicU64::from_ptr(at).swap(new, SeqCst)
    }
}

/// Clears all bits but those of `mask`.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub(crate) unsafe fn and(at: *mut u64, mask: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_and};
        atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(at, mask);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        AtomicU64::from_ptr(at).fetch_and(mask, SeqCst);
    }
}

/// Adds `value`, wrapping.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub(crate) unsafe fn add(at: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(at, value);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        AtomicU64::from_ptr(at).fetch_add(value, SeqCst);
    }
}
