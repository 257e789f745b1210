//! Going on with the maps of an earlier agent: its flows refer to indices in them, which must go on to mean the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::{Result, bail};
use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::tables::{Backend, Service, backend, hop};
use lb_common::{V4, V6};

use crate::datapath::contents::Contents;
use crate::datapath::kernel::{Kernel, monotonic_now};
use crate::desired::{Destination, Indices, cluster_of_window, window_name};
use crate::endpoints::Endpoints;
use crate::model::{Config, Listener, OnLeaving};
use crate::moved::MovedRoutes;

/// Takes over what the maps hold, into `contents` what is in use now, into `indices` what has an index.
///
/// The maps know no names. Backends are found again by their address, listeners by theirs, clusters by the listeners that
/// use them; other windows stay as they are until the services have gone over to new ones. What is not found again is in use for as long as a
/// flow refers to it: such backends become draining endpoints without a cluster.
pub(super) fn adopt(
    kernel: &Kernel,
    config: &Config,
    endpoints: &mut Endpoints,
    indices: &mut Indices,
    contents: &mut Contents,
    moved: &mut MovedRoutes,
) -> Result<()> {
    kernel.read_served(contents)?;
    contents.limits = kernel.read_limits();
    for &window in contents.slots.keys() {
        indices.clusters.reserve(cluster_of_window(window));
    }
    adopt_services(config, indices, contents);
    adopt_clusters(config, indices, contents);
    adopt_backends(kernel, config, endpoints, indices, contents);
    for (&(address, bits), &hop) in &contents.routes4 {
        let IpAddr::V4(address) = IpAddr::from(address) else { bail!("an IPv4 address is one") };
        indices.hops.adopt(Destination::Clients(Ipv4Net::new(address, bits)?.into()), hop);
    }
    for (&(address, bits), &hop) in &contents.routes6 {
        let IpAddr::V6(address) = IpAddr::from(address) else { bail!("an IPv6 address is one") };
        indices.hops.adopt(Destination::Clients(Ipv6Net::new(address, bits)?.into()), hop);
    }
    for (index, hop) in kernel.used_hops() {
        indices.hops.reserve(index);
        if hop.flags & hop::RELOOKUP != 0 {
            moved.adopt(index, monotonic_now());
        }
        contents.hops.insert(index, hop);
    }
    indices.snat_addresses = kernel.read_snat_addresses()?;
    contents.snat_addresses.clone_from(&indices.snat_addresses);
    Ok(())
}

/// The listener that an address was, and is, served for.
fn listener_at(config: &Config, address: IpAddr, port: u16) -> Option<&Listener> {
    let of_port = config.listeners.iter().filter(|listener| {
        listener.address.port() == u16::from_be(port) && listener.address.is_ipv4() == address.is_ipv4()
    });
    of_port
        .filter(|listener| listener.address.ip() == address || listener.address.ip().is_unspecified())
        .max_by_key(|listener| listener.address.ip() == address)
}

fn services(contents: &Contents) -> impl Iterator<Item = (IpAddr, u16, Service)> {
    let v4 = contents.services4.iter().map(|(key, service)| (key.address.into(), key.port, *service));
    v4.chain(contents.services6.iter().map(|(key, service)| (key.address.into(), key.port, *service)))
}

fn adopt_services(config: &Config, indices: &mut Indices, contents: &Contents) {
    for (address, port, service) in services(contents) {
        match listener_at(config, address, port) {
            Some(listener) if indices.services.find(&listener.name).is_none() => {
                indices.services.adopt(listener.name.clone(), service.id);
            }
            _ => indices.services.reserve(service.id),
        }
    }
}

/// A cluster keeps the windows of the services that are its own now, if they are no other's: there may be no room for all
/// of them twice.
fn adopt_clusters(config: &Config, indices: &mut Indices, contents: &Contents) {
    let mut users: BTreeMap<u32, BTreeSet<Option<String>>> = BTreeMap::new();
    for (address, port, service) in services(contents) {
        let cluster = listener_at(config, address, port).map(window_name);
        users.entry(cluster_of_window(service.cluster)).or_default().insert(cluster);
    }
    for (index, clusters) in users {
        if let [Some(name)] = &clusters.into_iter().collect::<Vec<_>>()[..]
            && index != 0
            && indices.clusters.find(name).is_none()
        {
            indices.clusters.adopt(name.clone(), index);
        }
    }
}

fn adopt_backends(
    kernel: &Kernel,
    config: &Config,
    endpoints: &mut Endpoints,
    indices: &mut Indices,
    contents: &mut Contents,
) {
    // Of which cluster it was is not known.
    let drains = config.clusters.iter().filter(|cluster| cluster.on_removed != OnLeaving::Keep);
    let drain_timeout = drains.map(|cluster| cluster.drain_timeout).max();
    for (index, backend) in kernel.backends() {
        contents.backends.insert(index, backend);
        let address = address_of(&backend);
        if backend.hop != 0 {
            indices.hops.adopt(Destination::Backend(address.ip()), backend.hop);
        }
        let cluster = config.clusters.iter().find(|cluster| {
            let id = indices.clusters.find(&cluster.name);
            endpoints.of(&cluster.name).any(|(of, _)| of == address)
                && id.is_none_or(|id| indices.backends.find(&(id, address)).is_none())
        });
        match cluster.and_then(|cluster| indices.clusters.get(&cluster.name)) {
            Some(cluster) => indices.backends.adopt((cluster, address), index),
            // Its flows live on; no new ones come.
            None if indices.backends.find(&(0, address)).is_none() => {
                indices.backends.adopt((0, address), index);
                endpoints.adopt_draining(address, drain_timeout, Instant::now());
            }
            None => indices.backends.reserve(index),
        }
    }
}

fn address_of(of: &Backend) -> SocketAddr {
    let address: IpAddr =
        if of.flags & backend::V6 != 0 { V6(of.address).into() } else { V4(of.address[0]).into() };
    SocketAddr::new(address, u16::from_be(of.port))
}
