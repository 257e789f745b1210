//! The few atomic operations that the datapath needs, on fields of map values.
//!
//! The BPF target of rustc has atomic loads and stores, but no read-modify-write of the standard library; there
//! the intrinsics stand in (BPF instruction set, cpu v3: kernel 5.12).

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::{AcqRel, Acquire};

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

/// Sets the bits of `set` and clears those of `clear`.
///
/// # Safety
/// As [`compare_exchange`].
#[inline(always)]
pub(crate) unsafe fn update_bits(at: *mut u64, set: u64, clear: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's.
    unsafe {
        use core::intrinsics::{AtomicOrdering, atomic_and, atomic_or};
        if set != 0 {
            atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(at, set);
        }
        if clear != 0 {
            atomic_and::<u64, u64, { AtomicOrdering::SeqCst }>(at, !clear);
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        AtomicU64::from_ptr(at).fetch_or(set, AcqRel);
        AtomicU64::from_ptr(at).fetch_and(!clear, AcqRel);
    }
}
