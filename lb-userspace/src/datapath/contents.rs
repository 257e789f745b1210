//! What the maps should hold, as data, and the steps from one such picture to another.
//!
//! The pure part of the reconciler: no map, no clock, no network. Steps are ordered so that a packet never meets a
//! reference to something that is not there: what is referred to is written before, and taken away after, what
//! refers to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use lb_common::tables::{Backend, NextHop, Service, ServiceKey, Settings};
use lb_common::{V4, V6};

/// A prefix: address and bits.
pub type Prefix<A> = (A, u8);

/// The contents of all maps but the flows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Interfaces that XDP may redirect to.
    pub devices: BTreeSet<u32>,
    /// By index; `confirmed` does not count.
    pub hops: BTreeMap<u32, NextHop>,
    /// By index.
    pub snat_addresses: Vec<[u32; 4]>,
    /// Network byte order.
    pub snat_ports: Vec<u16>,
    /// By index.
    pub backends: BTreeMap<u32, Backend>,
    /// Connections that a cluster may have, by [`lb_common::tables::Backend::cluster`]; without an entry any number.
    pub limits: BTreeMap<u32, u64>,
    /// Slots of each cluster, by its index.
    pub slots: BTreeMap<u32, Arc<[u32]>>,
    /// Towards IPv4 clients.
    pub routes4: HashMap<Prefix<V4>, u32>,
    /// Towards IPv6 clients.
    pub routes6: HashMap<Prefix<V6>, u32>,
    /// Served IPv4 addresses.
    pub services4: HashMap<ServiceKey<V4>, Service>,
    /// Served IPv6 addresses.
    pub services6: HashMap<ServiceKey<V6>, Service>,
    /// The settings; `snat_ports` in it is the length of `snat_ports` here.
    pub settings: Settings,
}

/// One change of a map.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Device(u32, bool),
    /// `None`: the index is free again.
    Hop(u32, Option<NextHop>),
    SnatAddress(u32, [u32; 4]),
    SnatPorts(Vec<u16>),
    /// `None`: the index is free again.
    Backend(u32, Option<Backend>),
    /// `None`: any number.
    Limit(u32, Option<u64>),
    /// Written beside the old window, then switched; of one with as many slots only those that differ.
    Slots(u32, Arc<[u32]>),
    /// The window is no cluster's any more.
    NoSlots(u32),
    Route4(Prefix<V4>, Option<u32>),
    Route6(Prefix<V6>, Option<u32>),
    Settings(Settings),
    Service4(ServiceKey<V4>, Option<Service>),
    Service6(ServiceKey<V6>, Option<Service>),
}

impl Contents {
    /// Notes that a step has been carried out.
    pub fn record(&mut self, step: Step) {
        match step {
            Step::Device(index, true) => drop(self.devices.insert(index)),
            Step::Device(index, false) => drop(self.devices.remove(&index)),
            Step::Hop(index, hop) => put(&mut self.hops, index, hop),
            Step::SnatAddress(index, address) => {
                let index = index as usize;
                if self.snat_addresses.len() <= index {
                    self.snat_addresses.resize(index + 1, [0; 4]);
                }
                self.snat_addresses[index] = address;
            }
            Step::SnatPorts(ports) => self.snat_ports = ports,
            Step::Backend(index, backend) => put(&mut self.backends, index, backend),
            Step::Limit(cluster, limit) => put(&mut self.limits, cluster, limit),
            Step::Slots(cluster, slots) => drop(self.slots.insert(cluster, slots)),
            Step::NoSlots(cluster) => drop(self.slots.remove(&cluster)),
            Step::Route4(prefix, hop) => put_hashed(&mut self.routes4, prefix, hop),
            Step::Route6(prefix, hop) => put_hashed(&mut self.routes6, prefix, hop),
            Step::Settings(settings) => self.settings = settings,
            Step::Service4(key, service) => put_hashed(&mut self.services4, key, service),
            Step::Service6(key, service) => put_hashed(&mut self.services6, key, service),
        }
    }
}

fn put<V>(map: &mut BTreeMap<u32, V>, key: u32, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn put_hashed<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// The steps that make `old` into `new`.
pub fn plan(old: &Contents, new: &Contents) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(new.devices.difference(&old.devices).map(|&device| Step::Device(device, true)));
    for (&index, hop) in &new.hops {
        if old.hops.get(&index) != Some(hop) {
            steps.push(Step::Hop(index, Some(*hop)));
        }
    }
    for (index, address) in new.snat_addresses.iter().enumerate() {
        if old.snat_addresses.get(index) != Some(address) {
            steps.push(Step::SnatAddress(index as u32, *address));
        }
    }
    if old.snat_ports != new.snat_ports {
        steps.push(Step::SnatPorts(new.snat_ports.clone()));
    }
    for (&index, backend) in &new.backends {
        if old.backends.get(&index) != Some(backend) {
            steps.push(Step::Backend(index, Some(*backend)));
        }
    }
    for (&cluster, &limit) in &new.limits {
        if old.limits.get(&cluster) != Some(&limit) {
            steps.push(Step::Limit(cluster, Some(limit)));
        }
    }
    for &cluster in old.limits.keys().filter(|cluster| !new.limits.contains_key(cluster)) {
        steps.push(Step::Limit(cluster, None));
    }
    for (&cluster, slots) in &new.slots {
        if old.slots.get(&cluster) != Some(slots) {
            steps.push(Step::Slots(cluster, Arc::clone(slots)));
        }
    }
    set(&old.routes4, &new.routes4, &mut steps, Step::Route4);
    set(&old.routes6, &new.routes6, &mut steps, Step::Route6);
    if old.settings != new.settings {
        steps.push(Step::Settings(new.settings));
    }
    set(&old.services4, &new.services4, &mut steps, Step::Service4);
    set(&old.services6, &new.services6, &mut steps, Step::Service6);

    unset(&old.services4, &new.services4, &mut steps, Step::Service4);
    unset(&old.services6, &new.services6, &mut steps, Step::Service6);
    unset(&old.routes4, &new.routes4, &mut steps, Step::Route4);
    unset(&old.routes6, &new.routes6, &mut steps, Step::Route6);
    for &cluster in old.slots.keys().filter(|cluster| !new.slots.contains_key(cluster)) {
        steps.push(Step::NoSlots(cluster));
    }
    for &index in old.backends.keys().filter(|index| !new.backends.contains_key(index)) {
        steps.push(Step::Backend(index, None));
    }
    for &index in old.hops.keys().filter(|index| !new.hops.contains_key(index)) {
        steps.push(Step::Hop(index, None));
    }
    steps.extend(old.devices.difference(&new.devices).map(|&device| Step::Device(device, false)));
    steps
}

fn set<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    old: &HashMap<K, V>,
    new: &HashMap<K, V>,
    steps: &mut Vec<Step>,
    step: impl Fn(K, Option<V>) -> Step,
) {
    steps.extend(new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, v)| step(*k, Some(*v))));
}

fn unset<K: Copy + Eq + Hash, V>(
    old: &HashMap<K, V>,
    new: &HashMap<K, V>,
    steps: &mut Vec<Step>,
    step: impl Fn(K, Option<V>) -> Step,
) {
    steps.extend(old.keys().filter(|k| !new.contains_key(k)).map(|k| step(*k, None)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::tables::backend;

    fn sample() -> Contents {
        let backend = Backend {
            address: [1, 0, 0, 0],
            port: 2,
            flags: backend::USED,
            hop: 1,
            snat_first: 0,
            snat_count: 1,
            cluster: 0,
            zero: 0,
        };
        let service = Service { id: 1, cluster: 0, policy: 0, attempts: 3, flags: 0 };
        Contents {
            backends: BTreeMap::from([(1, backend)]),
            slots: BTreeMap::from([(0, [1].into())]),
            services4: HashMap::from([(ServiceKey { address: V4(7), port: 80, protocol: [6, 0] }, service)]),
            snat_ports: vec![1, 2],
            ..Contents::default()
        }
    }

    #[test]
    fn nothing_to_do_between_equals() {
        assert_eq!(plan(&sample(), &sample()), []);
    }

    #[test]
    fn what_is_referred_to_comes_first_and_goes_last() {
        let kinds = |steps: Vec<Step>| -> Vec<&'static str> {
            steps
                .iter()
                .map(|step| match step {
                    Step::Backend(..) => "backend",
                    Step::Slots(..) | Step::NoSlots(_) => "slots",
                    Step::Service4(..) => "service",
                    _ => "other",
                })
                .collect()
        };
        let build = kinds(plan(&Contents::default(), &sample()));
        assert_eq!(build, ["other", "backend", "slots", "service"]);
        let tear_down = kinds(plan(&sample(), &Contents::default()));
        assert_eq!(tear_down, ["other", "service", "slots", "backend"]);
    }

    #[test]
    fn steps_carried_out_make_one_picture_into_the_other() {
        for (from, to) in [(Contents::default(), sample()), (sample(), Contents::default())] {
            let mut contents = from.clone();
            for step in plan(&from, &to) {
                contents.record(step);
            }
            assert_eq!(contents, to);
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let mut new = sample();
        new.slots.insert(0, [1, 1].into());
        assert_eq!(plan(&sample(), &new), [Step::Slots(0, [1, 1].into())]);
    }
}
