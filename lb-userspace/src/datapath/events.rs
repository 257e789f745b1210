//! What the programs tell of connections, one by one: the agent's end of the ring.

use anyhow::{Result, bail};
use aya::maps::{Map, MapData, RingBuf};
use lb_common::event::Event;
use lb_common::{V4, V6};

/// The ring. Nobody is woken when something is put in: it is to be looked at often.
pub struct Events(RingBuf<MapData>);

/// An event of either family.
pub enum Told {
    V4(Event<V4>),
    V6(Event<V6>),
}

impl Events {
    /// The reading end of the map; there may be one only.
    pub fn new(map: Map) -> Result<Self> {
        Ok(Self(RingBuf::try_from(map)?))
    }

    /// The oldest event that nobody has read yet.
    pub fn next(&mut self) -> Result<Option<Told>> {
        let Some(item) = self.0.next() else { return Ok(None) };
        Ok(Some(match item.len() {
            // SAFETY: as many bytes as the type has, of which any are a value; the ring aligns to 8, and an unaligned read
            // would do as well.
            len if len == size_of::<Event<V4>>() => {
                Told::V4(unsafe { item.as_ptr().cast::<Event<V4>>().read_unaligned() })
            }
            // SAFETY: as above.
            len if len == size_of::<Event<V6>>() => {
                Told::V6(unsafe { item.as_ptr().cast::<Event<V6>>().read_unaligned() })
            }
            len => bail!("an event of {len} bytes, which this version does not know"),
        }))
    }
}
