//! The pinned maps as a [`Source`].

use std::cell::RefCell;

use anyhow::Result;
use aya::maps::{Array, MapData, PerCpuArray};
use lb_common::table::FlowSet;
use lb_common::tables::{
    Active, Backend, Live, NextHop, PORTS_A_VALUE, Service, ServiceKey, Settings, Window, names,
};
use lb_common::{Flow, Key};

use super::overlay::Source;
use crate::datapath::flow_table::FlowTable;
use crate::datapath::mapped::Mapped;
use crate::maps::read::{Family, PinnedMaps, found};

pub(super) struct PinnedSource<'p, A> {
    maps: PinnedMaps<'p>,
    flows: FlowTable<A>,
    windows: Mapped<Window>,
    cursors: PerCpuArray<MapData, u32>,
    slots: Mapped<u32>,
    backends: Mapped<Backend>,
    next_hops: Mapped<NextHop>,
    snat_addresses: Array<MapData, [u32; 4]>,
    snat_ports: Array<MapData, [u16; 4]>,
    settings: Mapped<Settings>,
    live: Mapped<Live>,
    active: Mapped<Active>,
    /// The first read that failed; the datapath knows only of entries that are not there.
    failed: RefCell<Option<anyhow::Error>>,
}

impl<'p, A: Family> PinnedSource<'p, A> {
    pub(super) fn new(maps: PinnedMaps<'p>) -> Result<Self> {
        Ok(Self {
            maps,
            flows: maps.flows::<A>()?,
            windows: maps.mapped(names::CLUSTERS)?,
            cursors: maps.typed(names::CURSORS)?,
            slots: maps.mapped(names::SLOTS)?,
            backends: maps.mapped(names::BACKENDS)?,
            next_hops: maps.mapped(names::NEXT_HOPS)?,
            snat_addresses: maps.typed(names::SNAT_ADDRESSES)?,
            snat_ports: maps.typed(names::SNAT_PORTS)?,
            settings: maps.mapped(names::SETTINGS)?,
            live: maps.mapped(names::LIVE)?,
            active: maps.mapped(names::ACTIVE)?,
            failed: RefCell::new(None),
        })
    }

    /// Whether all reads succeeded so far.
    pub(super) fn check(&self) -> Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn read<T>(&self, result: Result<Option<T>>) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            None
        })
    }
}

fn get<T: aya::Pod>(values: &Mapped<T>, index: u32) -> Option<T> {
    (index < values.len()).then(|| values.get(index))
}

/// The value at `index`; `None` beyond the end, where aya reports an error.
fn get_element<T: aya::Pod>(values: &Array<MapData, T>, index: u32) -> Result<Option<T>> {
    if index < values.len() { found(values.get(&index, 0)) } else { Ok(None) }
}

impl<A: Family> Source<A> for PinnedSource<'_, A> {
    fn flow_sets(&self) -> u32 {
        self.flows.sets()
    }

    fn flow_set(&self, index: u32) -> Option<FlowSet<A>> {
        self.read(self.flows.set(index).map(Some))
    }

    fn flow(&self, key: &Key<A>) -> Option<Flow<A>> {
        self.read(self.flows.look().find(key))
    }

    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        self.read(A::service(self.maps, key))
    }

    fn window(&self, cluster: u32) -> Option<Window> {
        get(&self.windows, cluster)
    }

    fn cursor(&self, cluster: u32) -> u32 {
        if cluster >= self.cursors.len() {
            return 0;
        }
        self.read(found(self.cursors.get(&cluster, 0)))
            .and_then(|by_cpu| by_cpu.first().copied())
            .unwrap_or(0)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        get(&self.slots, index)
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        get(&self.backends, index)
    }

    fn next_hop(&self, index: u32) -> Option<NextHop> {
        get(&self.next_hops, index)
    }

    fn route(&self, address: A) -> Option<u32> {
        self.read(A::route(self.maps, address))
    }

    fn snat_address(&self, index: u32) -> Option<A> {
        self.read(get_element(&self.snat_addresses, index)).map(A::from_words)
    }

    fn snat_port(&self, index: u32) -> Option<u16> {
        self.read(get_element(&self.snat_ports, index / PORTS_A_VALUE))
            .map(|ports| ports[(index % PORTS_A_VALUE) as usize])
    }

    fn settings(&self) -> Option<Settings> {
        get(&self.settings, 0)
    }

    fn active(&self, index: u32) -> Active {
        get(&self.active, index).unwrap_or_default()
    }

    fn live(&self) -> u64 {
        get(&self.live, A::INDEX).map_or(u64::MAX, |live| live.opened.wrapping_sub(live.closed))
    }
}
