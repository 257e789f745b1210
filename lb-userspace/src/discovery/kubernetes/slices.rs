//! The EndpointSlices of a Service, and the endpoints that they make together. No I/O.
//!
//! The meaning of the conditions is that of the API (`discovery.k8s.io/v1`) and of kube-proxy: KEP-1672 has `serving` and
//! `terminating`, KEP-1669 what becomes of terminating endpoints where no other is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint as Listed, EndpointPort, EndpointSlice};

use crate::discovery::answer::unusable;
use crate::model::{DnsFamily, Endpoint, Kubernetes, KubernetesPort};

/// Slices by their names.
#[derive(Default)]
pub(super) struct Slices(BTreeMap<String, EndpointSlice>);

/// The endpoints that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Sorted by address, each once.
    pub(super) endpoints: Vec<Endpoint>,
    /// Those that take no new connections, though they are there, and why.
    pub(super) left: BTreeMap<SocketAddr, String>,
    pub(super) why: String,
}

/// What a slice says of an address. Where several slices have it, as when one moves between them, the first in this
/// order counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Ready,
    NotReady,
    /// It ends, and still passes its readiness probe.
    TerminatingServing,
    Terminating,
}

#[derive(Clone, Copy)]
struct Seen<'s> {
    condition: Condition,
    endpoint: &'s Listed,
}

impl Slices {
    /// Of a list, in the place of all there are.
    pub(super) fn replace(&mut self, slices: Vec<EndpointSlice>) {
        self.0.clear();
        for slice in slices {
            self.apply(slice);
        }
    }

    /// One that is new or has changed.
    pub(super) fn apply(&mut self, mut slice: EndpointSlice) {
        // Nothing else of the metadata is needed, and it can be longer than the rest.
        let metadata = std::mem::take(&mut slice.metadata);
        if let Some(name) = metadata.name {
            self.0.insert(name, slice);
        }
    }

    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        if let Some(name) = &slice.metadata.name {
            self.0.remove(name);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The endpoints of the Service; an error says why it cannot be known which they are.
    pub(super) fn endpoints(&self, of: &Kubernetes) -> Result<Found, String> {
        let slices: Vec<&EndpointSlice> = self.of_family(of.family).collect();
        let service = format!("{}/{}", of.namespace, of.service);
        self.check_addresses(&slices, &service)?;
        check_port(&slices, of.port.as_ref(), &service)?;

        let mut seen: BTreeMap<SocketAddr, Seen<'_>> = BTreeMap::new();
        for slice in slices {
            let Some(port) = ports(slice).find(|port| is_wanted(port, of.port.as_ref())) else { continue };
            for endpoint in &slice.endpoints {
                let Some(address) = address(endpoint, &slice.address_type) else { continue };
                let new = Seen { condition: condition(endpoint), endpoint };
                let known = seen.entry(SocketAddr::new(address, port.number)).or_insert(new);
                if new.condition < known.condition {
                    *known = new;
                }
            }
        }
        Ok(found(&seen, &service))
    }

    fn of_family(&self, family: DnsFamily) -> impl Iterator<Item = &EndpointSlice> {
        self.0.values().filter(move |slice| match slice.address_type.as_str() {
            "IPv4" => family != DnsFamily::V6,
            "IPv6" => family != DnsFamily::V4,
            _ => false,
        })
    }

    /// Refuses slices that have nothing but names.
    fn check_addresses(&self, usable: &[&EndpointSlice], service: &str) -> Result<(), String> {
        let names = self.0.values().any(|slice| slice.address_type == "FQDN" && !slice.endpoints.is_empty());
        let addresses = usable.iter().any(|slice| !slice.endpoints.is_empty());
        if names && !addresses {
            return Err(format!(
                "the EndpointSlices of {service} have names (addressType FQDN) and no addresses: use type: strict_dns \
                 with these names"
            ));
        }
        Ok(())
    }
}

/// A TCP port that endpoints listen on.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Port<'s> {
    /// Empty where it has none.
    name: &'s str,
    number: u16,
}

impl fmt::Display for Port<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, number } = self;
        if name.is_empty() { write!(f, "{number}") } else { write!(f, "{name} ({number})") }
    }
}

/// Those without a number stand for all ports, and are none to connect to.
fn ports(slice: &EndpointSlice) -> impl Iterator<Item = Port<'_>> {
    slice.ports.iter().flatten().filter_map(|EndpointPort { name, port, protocol, .. }| {
        let number = port.and_then(|port| u16::try_from(port).ok()).filter(|number| *number != 0)?;
        let tcp = protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        tcp.then(|| Port { name: name.as_deref().unwrap_or_default(), number })
    })
}

fn is_wanted(port: &Port<'_>, wanted: Option<&KubernetesPort>) -> bool {
    match wanted {
        None => true,
        Some(KubernetesPort::Name(name)) => port.name == name,
        Some(KubernetesPort::Number(number)) => port.number == *number,
    }
}

/// Whether it is clear which port is meant. A Service whose endpoints are all gone has slices without ports.
fn check_port(
    slices: &[&EndpointSlice],
    wanted: Option<&KubernetesPort>,
    service: &str,
) -> Result<(), String> {
    let used: Vec<_> = slices.iter().filter(|slice| !slice.endpoints.is_empty()).collect();
    if used.is_empty() {
        return Ok(());
    }
    let ports: BTreeSet<Port<'_>> = used.iter().flat_map(|slice| ports(slice)).collect();
    let listed = ports.iter().map(Port::to_string).collect::<Vec<_>>().join(", ");
    let all = format!("the EndpointSlices of {service}");
    let found = ports.iter().any(|port| is_wanted(port, wanted));
    match wanted {
        // One name may have several numbers, as while Pods that listen elsewhere are rolled out.
        None if ports.iter().map(|port| port.name).collect::<BTreeSet<_>>().len() > 1 => {
            Err(format!("{all} have several ports, {listed}: say which one with `port`"))
        }
        _ if ports.is_empty() => Err(format!("{all} have no TCP port")),
        Some(KubernetesPort::Name(name)) if !found => {
            Err(format!("port `{name}` not found in {all}: they have {listed}"))
        }
        Some(KubernetesPort::Number(number)) if !found => {
            Err(format!("port {number} not found in {all}: they have {listed}"))
        }
        _ => Ok(()),
    }
}

/// The first of its addresses, which all lead to the same. `None`: no endpoint can have it.
fn address(endpoint: &Listed, kind: &str) -> Option<IpAddr> {
    let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    (address.is_ipv4() == (kind == "IPv4") && unusable(address).is_none()).then_some(address)
}

/// That an endpoint terminates counts more than that it is ready, as it may be as well in a Service that publishes
/// addresses which are not ready.
fn condition(endpoint: &Listed) -> Condition {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    match (conditions.terminating.unwrap_or(false), ready) {
        (true, _) if conditions.serving.unwrap_or(ready) => Condition::TerminatingServing,
        (true, _) => Condition::Terminating,
        (false, true) => Condition::Ready,
        (false, false) => Condition::NotReady,
    }
}

fn found(seen: &BTreeMap<SocketAddr, Seen<'_>>, service: &str) -> Found {
    let any = |condition| seen.values().any(|seen| seen.condition == condition);
    let last_resort = !any(Condition::Ready) && any(Condition::TerminatingServing);
    let why = if last_resort {
        format!("terminating but serving, while no endpoint of {service} is ready")
    } else if seen.is_empty() {
        format!("no endpoint in the EndpointSlices of {service}")
    } else {
        format!("in EndpointSlices of {service}")
    };
    let mut found = Found { endpoints: Vec::new(), left: BTreeMap::new(), why };
    for (&address, Seen { condition, endpoint }) in seen {
        let ready = match condition {
            Condition::Ready => true,
            Condition::NotReady => false,
            Condition::TerminatingServing if last_resort => true,
            Condition::TerminatingServing | Condition::Terminating => {
                found.left.insert(address, "terminating".to_owned());
                continue;
            }
        };
        let name = |name: &Option<String>| name.as_deref().filter(|name| !name.is_empty()).map(Arc::from);
        found.endpoints.push(Endpoint {
            node: name(&endpoint.node_name),
            zone: name(&endpoint.zone),
            ready,
            ..Endpoint::new(address, 1)
        });
    }
    found
}
