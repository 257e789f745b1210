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

    /// Takes the oldest event that nobody has read yet.
    pub fn take(&mut self) -> Result<Option<Told>> {
        let Some(item) = self.0.next() else { return Ok(None) };
        match item.len() {
            length if length == size_of::<Event<V4>>() => Ok(Some(Told::V4(read(&item)))),
            length if length == size_of::<Event<V6>>() => Ok(Some(Told::V6(read(&item)))),
            length => bail!("an event of {length} bytes, which this version does not know"),
        }
    }
}

/// The event that these bytes are.
fn read<A>(bytes: &[u8]) -> Event<A>
where
    Event<A>: aya::Pod,
{
    assert_eq!(bytes.len(), size_of::<Event<A>>());
    // SAFETY: as many bytes as the type has, of which any are a value.
    unsafe { bytes.as_ptr().cast::<Event<A>>().read_unaligned() }
}
