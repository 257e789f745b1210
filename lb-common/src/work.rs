//! Room for what a packet off the fast path is worked on with: too much for the 512 bytes of a BPF stack.

use core::cell::UnsafeCell;

use crate::address::Address;
use crate::decide::Env;
use crate::event::Event;
use crate::flow::{Flow, Key};
use crate::icmp::Quote;
use crate::open::{Choice, Request};
use crate::parse::Segment;
use crate::tables::Service;

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
    /// What backend is asked for.
    pub request: Part<Request>,
    /// What was chosen.
    pub choice: Part<Choice>,
    /// The entry to rewrite the packet by, if it is to be sent on.
    pub chosen: Part<Flow<A>>,
    /// Where the parts of an ICMP error are.
    pub quote: Part<Quote<A>>,
    /// What the agent is told.
    pub event: Part<Event<A>>,
    /// What it is to be told: bits by the number of the kind, see [`crate::event::kind`].
    pub tell: Part<u32>,
    /// The key that is looked up.
    pub sought: Part<Key<A>>,
    /// The address whose route is looked up.
    pub route: Part<RouteKey<A>>,
}

/// A key of the routes: 8 bytes for IPv4, 20 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteKey<A> {
    /// Bits of the address that count: all.
    pub bits: u32,
    /// The address.
    pub address: A,
}

impl<A: Address> Work<A> {
    /// Puts a packet in.
    #[inline(always)]
    pub fn put(&self, env: &Env, segment: &Segment<A>) {
        *self.segment.get_mut() = *segment;
        *self.env.get_mut() = *env;
        *self.tell.get_mut() = 0;
    }

    /// Has the agent told of the packet's connection once the packet is handled: the stack of the function that does it
    /// does not fit on top of the one that handles packets.
    #[inline(always)]
    pub(crate) fn ask_to_tell(&self, kind: u32) {
        *self.tell.get_mut() |= 1 << kind;
    }

    /// Puts an entry in, for tests of the table.
    #[cfg(feature = "user")]
    pub fn set(&self, env: &Env, forward: &Flow<A>) {
        *self.env.get_mut() = *env;
        *self.forward.get_mut() = *forward;
    }

    /// Asks for a backend of that service, for a first attempt.
    #[inline(always)]
    pub(crate) fn ask(&self, service: Service) {
        *self.request.get_mut() = Request { service, attempts: 0, avoid: 0 };
    }

    /// The packet.
    #[inline(always)]
    pub fn packet(&self) -> &Segment<A> {
        self.segment.get()
    }

    /// The key for the route towards `address`.
    #[inline(always)]
    pub fn route_key(&self, address: A) -> &RouteKey<A> {
        *self.route.get_mut() = RouteKey { bits: size_of::<A>() as u32 * 8, address };
        self.route.get()
    }
}

/// A part of the work room.
///
/// One packet at a time is worked on, by one function at a time: whoever writes to a part holds no other reference
/// to it. `segment` and `env` are written before all else; the others are each written by one function of `open` at a
/// time, `chosen` where a verdict is encoded or a route has moved, `quote` by `icmp`, `event` by `event`, `tell` where packets are
/// handled, `route` at each look-up.
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
