//! The programs' maps, filled from and compared with the tables of the host ([`HostTables`]).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::lpm_trie::{Key as Prefix, LpmTrie};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::{Ebpf, Pod, util::nr_cpus};
use lb_common::event::Event;
use lb_common::flow::mark;
use lb_common::host::{FamilyTables, HostTables};
use lb_common::tables::{Active, Live, MAX_CLUSTERS, Settings, names};
use lb_common::{Address, Flow, Key, V4, V6};
use lb_userspace::datapath::flow_table::FlowTable;

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
    let ports: Vec<[u16; 4]> = tables
        .snat_ports
        .chunks(4)
        .map(|ports| {
            let mut value = [0; 4];
            value[..ports.len()].copy_from_slice(ports);
            value
        })
        .collect();
    array(ebpf, names::SNAT_PORTS, &ports)?;
    array(ebpf, names::SETTINGS, &[tables.settings])?;
    array(ebpf, names::LIVE, &[Live::default(); 2])?;
    let active = tables.active.lock().expect("no panic while locked").clone();
    let open: Vec<u32> = self::active(ebpf)?.into_keys().chain(active.keys().copied()).collect();
    let mut map: Array<_, Active> = ebpf.map_mut(names::ACTIVE).context("no open connections")?.try_into()?;
    for index in open {
        map.set(index, active.get(&index).copied().unwrap_or_default(), 0)?;
    }
    events(ebpf)?;
    clear_flows::<V4>(ebpf, names::FLOWS4)?;
    clear_flows::<V6>(ebpf, names::FLOWS6)?;
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

/// A flow table of the loaded programs.
pub fn flow_table<A: Address>(ebpf: &Ebpf, name: &str) -> Result<FlowTable<A>> {
    let map: Array<_, Settings> = ebpf.map(names::SETTINGS).context("no settings")?.try_into()?;
    let seed = map.get(&0, 0)?.seed;
    let Some(Map::Array(data)) = ebpf.map(name) else { bail!("no array {name}") };
    FlowTable::new(MapData::from_id(data.info()?.id())?, seed, None)
}

/// Flows that the tables of either family are for.
pub fn max_flows(ebpf: &Ebpf) -> Result<u32> {
    Ok(flow_table::<V4>(ebpf, names::FLOWS4)?.max_flows())
}

/// How many flows were opened and closed, by family.
pub fn live(ebpf: &Ebpf) -> Result<[Live; 2]> {
    let map: Array<_, Live> = ebpf.map(names::LIVE).context("no counts of flows")?.try_into()?;
    Ok([map.get(&0, 0)?, map.get(&1, 0)?])
}

/// Connections that are open to each backend and cluster, where there are any.
pub fn active(ebpf: &Ebpf) -> Result<BTreeMap<u32, u64>> {
    let map: Array<_, Active> = ebpf.map(names::ACTIVE).context("no open connections")?.try_into()?;
    let mut found = BTreeMap::new();
    for index in 0..map.len() {
        let active = map.get(&index, 0)?;
        if active.both != 0 {
            found.insert(index, active.both);
        }
    }
    Ok(found)
}

/// What the programs have told since the last call: kinds and by what packets, of each family.
pub fn events(ebpf: &Ebpf) -> Result<[Vec<(u32, u32)>; 2]> {
    let map = ebpf.map(names::EVENTS).context("no events")?;
    let mut ring = RingBuf::try_from(map)?;
    let mut found = [Vec::new(), Vec::new()];
    while let Some(item) = ring.next() {
        let number = |at: usize| item[at..at + 4].try_into().map(u32::from_ne_bytes);
        let event = (number(8)?, number(12)?);
        found[usize::from(item.len() == size_of::<Event<V6>>())].push(event);
    }
    Ok(found)
}

/// Takes all entries out.
fn clear_flows<A: Address>(ebpf: &Ebpf, name: &str) -> Result<()> {
    let table = flow_table::<A>(ebpf, name)?;
    let look = table.look();
    for flow in table.entries()? {
        ensure!(look.remove(&flow)?, "{name} changes while no packet flows");
    }
    Ok(())
}

/// Takes a half-open entry out, as the kernel does at any time to make room.
pub fn evict_half_open<A: Address>(ebpf: &Ebpf, name: &str, key: &Key<A>) -> Result<()> {
    let table = flow_table::<A>(ebpf, name)?;
    let look = table.look();
    let flow = look.find(key)?.context("no such entry")?;
    ensure!(!flow.is_established() && look.remove(&flow)?, "no half-open entry");
    Ok(())
}

/// What stands in the flow table of a family that is not the same in `host`, whose table has the same size, or not in the
/// same place; nothing if all is. Times are not compared, and of the generations only which entries have the same.
pub fn differences<A: Address + Hash + Debug>(
    ebpf: &Ebpf,
    name: &str,
    host: &FamilyTables<A>,
) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let mut generations = BTreeMap::new();
    let table = flow_table::<A>(ebpf, name)?;
    for (index, wanted) in (0..table.sets()).zip(host.sets()) {
        let set = table.set(index)?;
        if (set.tags, set.strays) != (wanted.tags, wanted.strays) {
            let (theirs, ours) = ((set.tags, set.strays), (wanted.tags, wanted.strays));
            differences.push(format!("{name}: set {index}\n  kernel {theirs:x?}\n  host   {ours:x?}"));
        }
    }
    let entries = table.entries()?;
    let mut found: HashMap<Key<A>, Flow<A>> = entries.into_iter().map(|flow| (flow.key, flow)).collect();
    for wanted in host.established_entries().into_iter().chain(host.half_open_entries()) {
        let Some(mut entry) = found.remove(&wanted.key) else {
            differences.push(format!("{name}: the kernel has no {:?}", wanted.key));
            continue;
        };
        let known = *generations.entry(entry.generation()).or_insert_with(|| wanted.generation());
        entry.word = entry.word & !mark::GENERATION | known << mark::GENERATION_SHIFT;
        entry.last_seen = wanted.last_seen;
        if !entry.is_forward() {
            // How long the backend took to answer.
            entry.peer_isn = wanted.peer_isn;
        }
        let (theirs, ours) = (format!("{entry:?}"), format!("{wanted:?}"));
        if theirs != ours {
            differences.push(format!("{name}: {:?}\n  kernel {theirs}\n  host   {ours}", wanted.key));
        }
    }
    differences.extend(found.into_keys().map(|key| format!("{name}: the kernel has {key:?} besides")));
    Ok(differences)
}
