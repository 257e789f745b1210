//! The shared types as map keys and values of aya. All of them are `repr(C)`, hold only integers and arrays of
//! integers, and have no padding (tests below and in `flow`).

use aya::Pod;

use crate::address::{V4, V6};
use crate::event::Event;
use crate::flow::{Flow, Key};
use crate::tables::{Active, Backend, Failed, Live, NextHop, Opened, Service, ServiceKey, Settings, Window};

// SAFETY: integers only, no padding; see the head of this file.
unsafe impl Pod for V4 {}
// SAFETY: as above.
unsafe impl Pod for V6 {}
// SAFETY: as above.
unsafe impl Pod for Key<V4> {}
// SAFETY: as above.
unsafe impl Pod for Key<V6> {}
// SAFETY: as above.
unsafe impl Pod for Flow<V4> {}
// SAFETY: as above.
unsafe impl Pod for Flow<V6> {}
// SAFETY: as above.
unsafe impl Pod for ServiceKey<V4> {}
// SAFETY: as above.
unsafe impl Pod for ServiceKey<V6> {}
// SAFETY: as above.
unsafe impl Pod for Service {}
// SAFETY: as above.
unsafe impl Pod for Window {}
// SAFETY: as above.
unsafe impl Pod for Backend {}
// SAFETY: as above.
unsafe impl Pod for Opened {}
// SAFETY: as above.
unsafe impl Pod for Failed {}
// SAFETY: as above.
unsafe impl Pod for Active {}
// SAFETY: as above.
unsafe impl Pod for Event<V4> {}
// SAFETY: as above.
unsafe impl Pod for Event<V6> {}
// SAFETY: as above.
unsafe impl Pod for NextHop {}
// SAFETY: as above.
unsafe impl Pod for Settings {}
// SAFETY: as above.
unsafe impl Pod for Live {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::FlowSet;

    #[test]
    fn sizes_are_the_sums_of_the_fields() {
        assert_eq!(size_of::<ServiceKey<V4>>(), 8);
        assert_eq!(size_of::<ServiceKey<V6>>(), 20);
        assert_eq!(size_of::<Service>(), 16);
        assert_eq!(size_of::<Window>(), 8);
        assert_eq!(size_of::<Backend>(), 40);
        assert_eq!(size_of::<Opened>(), 16);
        assert_eq!(size_of::<NextHop>(), 56);
        assert_eq!(size_of::<Failed>(), 16);
        assert_eq!(size_of::<Active>(), 24);
        assert_eq!(size_of::<Settings>(), 24);
        assert_eq!(size_of::<Live>(), 24);
        assert_eq!(size_of::<Event<V4>>(), 16 + 2 * 96);
        assert_eq!(size_of::<Event<V6>>(), 16 + 2 * 144);
        assert_eq!(size_of::<FlowSet<V4>>(), 64 + 10 * 96);
        // And half a cache line at the end.
        assert_eq!(size_of::<FlowSet<V6>>(), 64 + 10 * 144 + 32);
    }
}
