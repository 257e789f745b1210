//! The kinds of objects that the server has.

/// A kind, with the names that the API gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    EndpointSlices,
    Services,
    Nodes,
    Namespaces,
}

impl Resource {
    pub(super) const ALL: [Self; 4] = [Self::EndpointSlices, Self::Services, Self::Nodes, Self::Namespaces];

    /// As in paths and in roles: `endpointslices`.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::EndpointSlices => "endpointslices",
            Self::Services => "services",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::EndpointSlices => "EndpointSlice",
            Self::Services => "Service",
            Self::Nodes => "Node",
            Self::Namespaces => "Namespace",
        }
    }

    pub(super) fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::EndpointSlices => &[],
            Self::Services => &["svc"],
            Self::Nodes => &["no"],
            Self::Namespaces => &["ns"],
        }
    }

    /// Empty for the core group.
    pub(super) fn group(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io",
            Self::Services | Self::Nodes | Self::Namespaces => "",
        }
    }

    /// `apiVersion` of its objects.
    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::Services | Self::Nodes | Self::Namespaces => "v1",
        }
    }

    pub(super) fn namespaced(self) -> bool {
        matches!(self, Self::EndpointSlices | Self::Services)
    }

    /// As messages name it: `endpointslices.discovery.k8s.io`, `services`.
    pub(super) fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }
}

/// What may be done with a resource; the server only lets read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Get,
    List,
    Watch,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
        }
    }
}
