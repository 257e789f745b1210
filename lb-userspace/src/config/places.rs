//! Where in the file the parts of a configuration stand that only the host can check.

use super::sections::Sections;

/// A position in the file: line and column (in characters), both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: u64,
    pub column: u64,
}

impl Place {
    /// The beginning of the file.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// The places of what the caller may still find wrong.
#[derive(Clone, Debug)]
pub struct Places {
    interfaces: Vec<(String, Place)>,
    snat_ports: Option<Place>,
    mode: Option<Place>,
    max_flows: Option<Place>,
    admin: Option<Place>,
    listeners: Vec<(String, Place)>,
    health_checks: Vec<(String, Place, String)>,
}

impl Places {
    pub(super) fn new(sections: &Sections) -> Self {
        let Sections { datapath, admin, listeners, clusters, .. } = sections;
        let interfaces = datapath.interfaces.iter().flatten();
        Self {
            interfaces: interfaces.map(|name| (name.value.clone(), name.place)).collect(),
            snat_ports: datapath.snat_ports.as_ref().map(|range| range.place),
            mode: datapath.mode.as_ref().map(|mode| mode.place),
            max_flows: datapath.max_flows.as_ref().map(|flows| flows.place),
            admin: admin.as_ref().map(|address| address.place),
            listeners: listeners
                .iter()
                .filter_map(|listener| {
                    Some((listener.name.as_ref()?.value.clone(), listener.address.as_ref()?.place))
                })
                .collect(),
            health_checks: clusters
                .iter()
                .filter_map(|cluster| {
                    let check = cluster.health_check.as_ref()?;
                    Some((cluster.name.as_ref()?.value.clone(), check.place, check.path.clone()))
                })
                .collect(),
        }
    }

    /// Of that name in `datapath.interfaces`.
    pub fn interface(&self, name: &str) -> Option<Place> {
        find(&self.interfaces, name)
    }

    /// Of the value of `datapath.snat_ports`; `None` if it is `auto` or left out.
    pub fn snat_ports(&self) -> Option<Place> {
        self.snat_ports
    }

    /// Of the value of `datapath.mode`; `None` if it is left out.
    pub fn mode(&self) -> Option<Place> {
        self.mode
    }

    /// Of the value of `datapath.max_flows`; `None` if it is `auto` or left out.
    pub fn max_flows(&self) -> Option<Place> {
        self.max_flows
    }

    /// Of the address of the admin port; `None` if there is none.
    pub fn admin(&self) -> Option<Place> {
        self.admin
    }

    /// Of the address of the listener of that name.
    pub fn listener(&self, name: &str) -> Option<Place> {
        find(&self.listeners, name)
    }

    /// Of the health check of the cluster of that name, with its field.
    pub fn health_check(&self, cluster: &str) -> Option<(Place, &str)> {
        let (_, place, path) = self.health_checks.iter().find(|(name, _, _)| name == cluster)?;
        Some((*place, path))
    }
}

fn find(places: &[(String, Place)], name: &str) -> Option<Place> {
    places.iter().find(|(known, _)| known == name).map(|(_, place)| *place)
}
