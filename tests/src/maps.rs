//! The programs' maps, filled from and compared with the tables of the host ([`HostTables`]).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;

use anyhow::{Context as _, Result, ensure};
use aya::maps::lpm_trie::{Key as Prefix, LpmTrie};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod, util::nr_cpus};
use lb_common::flow::MOVED;
use lb_common::host::{FamilyTables, HostTables};
use lb_common::tables::{Live, MAX_CLUSTERS, names};
use lb_common::{Address, Flow, Key};

/// Lets XDP redirect to a device.
pub fn add_device(ebpf: &mut Ebpf, ifindex: u32) -> Result<()> {
    let map = ebpf.map_mut(names::DEVICES).context("no device map")?;
    Ok(DevMapHash::try_from(map)?.insert(ifindex, ifindex, None, 0)?)
}

/// Brings the maps to the state of `tables`, which are as made: without flows, with cursors at 0.
pub fn fill(ebpf: &mut Ebpf, tables: &HostTables) -> Result<()> {
    hash(ebpf, names::SERVICES4, &tables.v4.services)?;
    hash(ebpf, names::SERVICES6, &tables.v6.services)?;
    routes(ebpf, names::ROUTES4, &tables.v4.routes)?;
    routes(ebpf, names::ROUTES6, &tables.v6.routes)?;
    array(ebpf, names::CLUSTERS, &tables.windows)?;
    array(ebpf, names::SLOTS, &tables.slots)?;
    array(ebpf, names::BACKENDS, &tables.backends)?;
    array(ebpf, names::NEXT_HOPS, &tables.next_hops)?;
    array(ebpf, names::SNAT_ADDRESSES, &tables.snat_addresses)?;
    array(ebpf, names::SNAT_PORTS, &tables.snat_ports)?;
    array(ebpf, names::SETTINGS, &[tables.settings])?;
    array(ebpf, names::LIVE, &[Live::default(); 2])?;
    for name in [names::FLOWS4, names::HALF4] {
        clear::<Key<lb_common::V4>, Flow<lb_common::V4>>(ebpf, name)?;
    }
    for name in [names::FLOWS6, names::HALF6] {
        clear::<Key<lb_common::V6>, Flow<lb_common::V6>>(ebpf, name)?;
    }
    ensure!(tables.windows.len() <= MAX_CLUSTERS as usize, "more clusters than the maps hold");
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    let mut cursors: PerCpuArray<_, u32> = ebpf.map_mut(names::CURSORS).context("no cursors")?.try_into()?;
    for cluster in 0..tables.windows.len() as u32 {
        cursors.set(cluster, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
    }
    Ok(())
}

fn array<T: Pod>(ebpf: &mut Ebpf, name: &str, values: &[T]) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
    let mut map: Array<_, T> = map.try_into().with_context(|| format!("map {name}"))?;
    for (index, value) in values.iter().enumerate() {
        map.set(index as u32, value, 0).with_context(|| format!("{name}[{index}]"))?;
    }
    Ok(())
}

fn hash_map<'e, K: Pod, V: Pod>(ebpf: &'e mut Ebpf, name: &str) -> Result<BpfHashMap<&'e mut MapData, K, V>> {
    let map = ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
    map.try_into().with_context(|| format!("map {name}"))
}

fn clear<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let mut map = hash_map::<K, V>(ebpf, name)?;
    let keys = map.keys().collect::<std::result::Result<Vec<K>, _>>()?;
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

fn hash<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str, entries: &HashMap<K, V>) -> Result<()> {
    clear::<K, V>(ebpf, name)?;
    let mut map = hash_map::<K, V>(ebpf, name)?;
    for (key, value) in entries {
        map.insert(key, value, 0).with_context(|| format!("an entry of {name}"))?;
    }
    Ok(())
}

fn routes<A: Pod>(ebpf: &mut Ebpf, name: &str, routes: &[(A, u8, u32)]) -> Result<()> {
    let map = ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
    let mut map: LpmTrie<_, A, u32> = map.try_into()?;
    for (address, bits, hop) in routes {
        map.insert(&Prefix::new(u32::from(*bits), *address), hop, 0)?;
    }
    Ok(())
}

/// Takes a half-open entry out, as the kernel does at any time when the map is full.
pub fn evict_half_open<A>(ebpf: &mut Ebpf, name: &str, key: &Key<A>) -> Result<()>
where
    Key<A>: Pod,
    Flow<A>: Pod,
{
    Ok(hash_map::<Key<A>, Flow<A>>(ebpf, name)?.remove(key)?)
}

/// What stands in the flow maps of a family that is not the same in `host`; nothing if all is. Times are not compared,
/// and of the generations only which entries and pins have the same.
pub fn differences<A>(
    ebpf: &Ebpf,
    flows: &str,
    half_open: &str,
    host: &FamilyTables<A>,
) -> Result<Vec<String>>
where
    A: Address + Hash + Debug,
    Key<A>: Pod,
    Flow<A>: Pod,
{
    let mut differences = Vec::new();
    let mut generations = BTreeMap::new();
    for (name, wanted) in [(flows, host.established_entries()), (half_open, host.half_open_entries())] {
        let map = ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let map: BpfHashMap<_, Key<A>, Flow<A>> = map.try_into()?;
        let mut found = map.iter().collect::<std::result::Result<HashMap<_, _>, _>>()?;
        for (key, wanted) in wanted {
            let Some(mut entry) = found.remove(&key) else {
                differences.push(format!("{name}: the kernel has no {key:?}"));
                continue;
            };
            for (theirs, ours) in [(&mut entry.generation, wanted.generation), (&mut entry.pin, wanted.pin)] {
                let fixed = [0, MOVED];
                if !fixed.contains(theirs) && !fixed.contains(&ours) {
                    let known = *generations.entry(*theirs).or_insert(ours);
                    *theirs = known;
                }
            }
            entry.last_seen = wanted.last_seen;
            let (theirs, ours) = (format!("{entry:?}"), format!("{wanted:?}"));
            if theirs != ours {
                differences.push(format!("{name}: {key:?}\n  kernel {theirs}\n  host   {ours}"));
            }
        }
        differences.extend(found.into_keys().map(|key| format!("{name}: the kernel has {key:?} besides")));
    }
    Ok(differences)
}
