//! The pinned maps, opened and typed. Reads only, and needs no agent.

use std::hash::Hash;
use std::io::ErrorKind;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::lpm_trie::Key as RouteKey;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use lb_common::tables::{Service, ServiceKey, Settings, names};
use lb_common::{Address, V4, V6};

use crate::datapath::batch;
use crate::datapath::flow_table::FlowTable;
use crate::datapath::mapped::Mapped;
use crate::datapath::object::Pins;

/// The maps below one place of pins.
#[derive(Clone, Copy)]
pub struct PinnedMaps<'p> {
    pins: &'p Pins,
}

impl<'p> PinnedMaps<'p> {
    /// `Err`: there are none, and why that may be.
    pub fn open(pins: &'p Pins) -> Result<Self> {
        let settings = pins.map(names::SETTINGS);
        match std::fs::symlink_metadata(&settings) {
            Ok(_) => Ok(Self { pins }),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "no maps are pinned in {}: either no agent of this version has run on this host since it booted (or \
                 `headgate unload` took them away), or it runs with another --bpffs, or another mount namespace hides \
                 the directory (`ip netns exec` makes one, `nsenter --net` does not)",
                pins.maps().display()
            ),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail!("{} may be read by root alone: run this as root", pins.maps().display())
            }
            Err(error) => Err(error).with_context(|| format!("looking for {}", settings.display())),
        }
    }

    /// An untyped map.
    pub fn data(&self, name: &str) -> Result<MapData> {
        let path = self.pins.map(name);
        MapData::from_pin(&path).with_context(|| format!("opening the map {} (as root?)", path.display()))
    }

    /// A typed map.
    pub fn typed<T: TryFrom<Map, Error = MapError>>(&self, name: &str) -> Result<T> {
        let map = Map::from_map_data(self.data(name)?)?;
        T::try_from(map).with_context(|| format!("the map {name} is of another version of Headgate"))
    }

    /// An array that can be mapped into memory.
    pub fn mapped<T: Pod>(&self, name: &str) -> Result<Mapped<T>> {
        Mapped::new(&self.data(name)?)
    }

    /// The first `count` values of an array.
    pub fn array<T: Pod>(&self, name: &str, count: u32) -> Result<Vec<T>> {
        let array: Array<MapData, T> = self.typed(name)?;
        let reading = || format!("reading the map {name}");
        (0..count.min(array.len())).map(|index| array.get(&index, 0).with_context(reading)).collect()
    }

    /// All values of a per-CPU array, each a list by CPU.
    pub fn per_cpu<T: Pod>(&self, name: &str) -> Result<Vec<Vec<T>>> {
        let array: PerCpuArray<MapData, T> = self.typed(name)?;
        let reading = || format!("reading the map {name}");
        array.iter().map(|values| values.map(|values| values.to_vec()).with_context(reading)).collect()
    }

    /// A flow table.
    pub fn flows<A: Family>(&self) -> Result<FlowTable<A>> {
        FlowTable::new(self.data(A::FLOWS)?, self.mapped::<Settings>(names::SETTINGS)?.get(0).seed, None)
    }
}

/// Typed access to the maps of one address family.
pub trait Family: Address + Pod + Hash + Into<IpAddr> {
    const FLOWS: &str;
    const SERVICES: &str;
    const ROUTES: &str;
    /// Index into `LIVE`.
    const INDEX: u32;
    /// The name in output.
    const NAME: &str;

    /// All served addresses.
    fn services(maps: PinnedMaps<'_>) -> Result<Vec<(ServiceKey<Self>, Service)>>;
    /// What is served at an address.
    fn service(maps: PinnedMaps<'_>, key: &ServiceKey<Self>) -> Result<Option<Service>>;
    /// All routes: address, bits, next hop.
    fn routes(maps: PinnedMaps<'_>) -> Result<Vec<(Self, u32, u32)>>;
    /// The next hop towards an address.
    fn route(maps: PinnedMaps<'_>, address: Self) -> Result<Option<u32>>;
}

/// `None` instead of the error of a missing key.
pub(crate) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("reading a BPF map"),
    }
}

macro_rules! family {
    ($address:ty, $flows:ident, $services:ident, $routes:ident, $index:literal, $name:literal) => {
        impl Family for $address {
            const FLOWS: &str = names::$flows;
            const SERVICES: &str = names::$services;
            const ROUTES: &str = names::$routes;
            const INDEX: u32 = $index;
            const NAME: &str = $name;

            fn services(maps: PinnedMaps<'_>) -> Result<Vec<(ServiceKey<Self>, Service)>> {
                let mut entries = Vec::new();
                batch::for_each(&maps.data(Self::SERVICES)?, |key, service| entries.push((*key, *service)))?;
                Ok(entries)
            }

            fn service(maps: PinnedMaps<'_>, key: &ServiceKey<Self>) -> Result<Option<Service>> {
                found(maps.typed::<HashMap<_, ServiceKey<Self>, Service>>(Self::SERVICES)?.get(key, 0))
            }

            fn routes(maps: PinnedMaps<'_>) -> Result<Vec<(Self, u32, u32)>> {
                let trie: LpmTrie<MapData, Self, u32> = maps.typed(Self::ROUTES)?;
                let mut routes = Vec::new();
                // A route that goes away meanwhile sends the iteration back to the beginning.
                for entry in trie.iter().take(2 * lb_common::tables::MAX_ROUTES as usize) {
                    let (key, hop) = entry.context("reading the routes")?;
                    routes.push((key.data(), key.prefix_len(), hop));
                }
                routes
                    .sort_unstable_by_key(|(address, bits, _)| (address.to_words().map(u32::from_be), *bits));
                routes.dedup_by_key(|(address, bits, _)| (*address, *bits));
                Ok(routes)
            }

            fn route(maps: PinnedMaps<'_>, address: Self) -> Result<Option<u32>> {
                let trie: LpmTrie<MapData, Self, u32> = maps.typed(Self::ROUTES)?;
                found(trie.get(&RouteKey::new(size_of::<Self>() as u32 * 8, address), 0))
            }
        }
    };
}
family!(V4, FLOWS4, SERVICES4, ROUTES4, 0, "ipv4");
family!(V6, FLOWS6, SERVICES6, ROUTES6, 1, "ipv6");
