//! An ARRAY map that user space writes through a mapping (`BPF_F_MMAPABLE`): a store instead of a system call, and
//! for a word an atomic one.

use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::MapData;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The values of an ARRAY map, each at a multiple of 8 bytes.
pub struct Mapped<T> {
    base: NonNull<u8>,
    stride: usize,
    entries: u32,
    bytes: usize,
    value: PhantomData<T>,
}

// SAFETY: memory shared with the kernel, which belongs to no thread; all access is volatile or atomic.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps `map`, which must hold `T`s.
    pub fn new(map: &MapData) -> Result<Self> {
        let info = map.info()?;
        ensure!(
            info.value_size() as usize == size_of::<T>(),
            "map {} holds values of {} bytes instead of {}",
            info.name_as_str().unwrap_or_default(),
            info.value_size(),
            size_of::<T>()
        );
        let stride = size_of::<T>().next_multiple_of(8);
        let entries = info.max_entries();
        let bytes = (stride * entries as usize).next_multiple_of(rustix::param::page_size());
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd().as_fd(),
                0,
            )
        }
        .context("mapping a BPF array")?;
        let base = NonNull::new(base.cast()).context("mapping a BPF array")?;
        Ok(Self { base, stride, entries, bytes, value: PhantomData })
    }

    fn at(&self, index: u32) -> NonNull<T> {
        assert!(index < self.entries, "index {index} beyond {} entries", self.entries);
        // SAFETY: inside the mapping, and 8 is enough alignment for any map value.
        unsafe { self.base.add(index as usize * self.stride).cast() }
    }

    /// A copy of the value at `index`.
    pub fn get(&self, index: u32) -> T {
        // SAFETY: inside the mapping; any bits are a value.
        unsafe { self.at(index).as_ptr().read_volatile() }
    }

    /// Stores `value` at `index`; not in one piece.
    pub fn set(&self, index: u32, value: T) {
        // SAFETY: inside the mapping.
        unsafe { self.at(index).as_ptr().write_volatile(value) }
    }

    /// The 64-bit word `word` of the value at `index`.
    pub fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!((word + 1) * 8 <= self.stride, "no word {word} in a value of {} bytes", self.stride);
        let at = self.at(index).as_ptr().cast::<u64>();
        // SAFETY: inside the mapping, aligned, and the programs access it as a whole word.
        unsafe { AtomicU64::from_ptr(at.add(word)) }
    }

    /// Stores a value of 64 bits in one piece.
    pub fn store(&self, index: u32, bits: u64) {
        self.word(index, 0).store(bits, Ordering::Release);
    }

    /// Number of values.
    pub fn len(&self) -> u32 {
        self.entries
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which no reference outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
