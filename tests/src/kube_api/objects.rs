//! The objects that tests put into the server, and their JSON.

use serde_json::{Value, json};

/// What an EndpointSlice's owner is known by.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

/// An EndpointSlice (discovery.k8s.io/v1). `Default` has no names: start from [`Slice::new`].
#[derive(Clone, Debug, Default)]
pub struct Slice {
    pub namespace: String,
    pub name: String,
    pub service: String,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

/// A port of every endpoint in a slice. An empty slice of a service has no ports; without a number it means all ports.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: Option<String>,
    pub number: Option<u16>,
    pub protocol: String,
}

/// One endpoint of a slice; a condition that is `None` is left out.
#[derive(Clone, Debug, Default)]
pub struct Endpoint {
    pub addresses: Vec<String>,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub node: Option<String>,
    pub zone: Option<String>,
}

impl Slice {
    /// Of IPv4 addresses, with no ports and no endpoints.
    pub fn new(namespace: &str, name: &str, service: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service: service.to_owned(),
            address_type: "IPv4".to_owned(),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn ipv6(mut self) -> Self {
        "IPv6".clone_into(&mut self.address_type);
        self
    }

    /// With a named TCP port.
    #[must_use]
    pub fn port(mut self, name: &str, number: u16) -> Self {
        let port = Port { name: Some(name.to_owned()), number: Some(number), protocol: "TCP".to_owned() };
        self.ports.push(port);
        self
    }

    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// With these endpoints, all of them ready.
    #[must_use]
    pub fn ready(mut self, addresses: &[impl ToString]) -> Self {
        self.endpoints.extend(addresses.iter().map(Endpoint::ready));
        self
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": {
                    SERVICE_NAME: self.service,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": self.address_type,
            "ports": self.ports.iter().map(Port::json).collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().map(Endpoint::json).collect::<Vec<_>>(),
        })
    }
}

impl Port {
    fn json(&self) -> Value {
        without_nulls(json!({ "name": self.name, "port": self.number, "protocol": self.protocol }))
    }
}

impl Endpoint {
    pub fn ready(address: &impl ToString) -> Self {
        Self::with_conditions(address, true, true, false)
    }

    /// Its readiness probe fails.
    pub fn not_ready(address: &impl ToString) -> Self {
        Self::with_conditions(address, false, false, false)
    }

    /// Its pod was deleted and has not ended yet; `serving` is what its readiness probe says.
    pub fn terminating(address: &impl ToString, serving: bool) -> Self {
        Self::with_conditions(address, false, serving, true)
    }

    /// Where it runs.
    #[must_use]
    pub fn on(mut self, node: &str, zone: &str) -> Self {
        (self.node, self.zone) = (Some(node.to_owned()), Some(zone.to_owned()));
        self
    }

    fn with_conditions(address: &impl ToString, ready: bool, serving: bool, terminating: bool) -> Self {
        Self {
            addresses: vec![address.to_string()],
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
            ..Self::default()
        }
    }

    fn json(&self) -> Value {
        let conditions =
            json!({ "ready": self.ready, "serving": self.serving, "terminating": self.terminating });
        without_nulls(json!({
            "addresses": self.addresses,
            "conditions": without_nulls(conditions),
            "nodeName": self.node,
            "zone": self.zone,
        }))
    }
}

/// A headless Service.
pub(super) fn service(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Value {
    let ports: Vec<_> = ports
        .iter()
        .map(
            |(name, number)| json!({ "name": name, "port": number, "targetPort": number, "protocol": "TCP" }),
        )
        .collect();
    json!({
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "clusterIPs": ["None"],
            "selector": { "app": name },
            "ports": ports,
        },
        "status": { "loadBalancer": {} },
    })
}

/// A node in a zone.
pub(super) fn node(name: &str, zone: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, ZONE: zone } },
        "spec": {},
        "status": {},
    })
}

pub(super) fn namespace(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    })
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, field| !field.is_null());
    }
    value
}
