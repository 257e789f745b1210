//! Room for what a packet off the fast path is worked on with: too much for the 512 bytes of a BPF stack.

use core::cell::UnsafeCell;

use crate::decide::Env;
use crate::flow::{Flow, Key};
use crate::open::{Choice, Request};
use crate::parse::Segment;

/// The work room of one CPU (in the kernel) or thread. Its parts are reached through [`Part`]s, since the functions
/// that share it cannot pass pointers to each other.
#[repr(C)]
pub struct Work<A> {
    /// The packet.
    pub segment: Part<Segment<A>>,
    /// Its circumstances.
    pub env: Part<Env>,
    /// A new entry, client to backend.
    pub forward: Part<Flow<A>>,
    /// A new entry, backend to client.
    pub reverse: Part<Flow<A>>,
    /// Key of `reverse`.
    pub reverse_key: Part<Key<A>>,
    /// What backend is asked for.
    pub request: Part<Request>,
    /// What was chosen.
    pub choice: Part<Choice>,
    /// The entry to rewrite the packet by, if it is to be sent on.
    pub chosen: Part<Flow<A>>,
}

/// A part of the work room.
///
/// One packet at a time is worked on, by one function at a time: whoever writes to a part holds no other reference
/// to it. `segment` and `env` are written before all else; the others are each written by
/// one function of `open` at a time, `chosen` by one of `off_path`, which copies it from another part.
#[repr(transparent)]
pub struct Part<T>(UnsafeCell<T>);

impl<T> Part<T> {
    /// A part that holds `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// To read.
    #[inline(always)]
    pub(crate) fn get(&self) -> &T {
        // SAFETY: nobody writes meanwhile; see the type.
        unsafe { &*self.0.get() }
    }

    /// To write.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the purpose of the type")]
    pub(crate) fn get_mut(&self) -> &mut T {
        // SAFETY: nobody else holds a reference meanwhile; see the type.
        unsafe { &mut *self.0.get() }
    }
}
