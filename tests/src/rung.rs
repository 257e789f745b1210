//! Which rung carried how many connections: what every end-to-end test asserts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What can carry a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    Xdp,
    Tc,
    Proxy,
}

impl Rung {
    /// As the configuration and the `--json` outputs name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Connections since the agent started, by the rung that carried them, over all backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub xdp: u64,
    pub tc: u64,
    pub proxy: u64,
}

impl Totals {
    /// `count` connections on `rung` and none elsewhere.
    pub fn only(rung: Rung, count: u64) -> Self {
        let mut totals = Self::default();
        match rung {
            Rung::Xdp => totals.xdp = count,
            Rung::Tc => totals.tc = count,
            Rung::Proxy => totals.proxy = count,
        }
        totals
    }

    /// Connections on `rung`.
    pub fn by(self, rung: Rung) -> u64 {
        match rung {
            Rung::Xdp => self.xdp,
            Rung::Tc => self.tc,
            Rung::Proxy => self.proxy,
        }
    }

    pub fn sum(self) -> u64 {
        self.xdp + self.tc + self.proxy
    }

    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { xdp: self.xdp - earlier.xdp, tc: self.tc - earlier.tc, proxy: self.proxy - earlier.proxy }
    }

    fn of_backend(backend: &Value) -> Result<Self> {
        let count = |rung: Rung| {
            let total = &backend["total"][rung.name()];
            total.as_u64().with_context(|| format!("no total.{rung} in {backend}"))
        };
        Ok(Self { xdp: count(Rung::Xdp)?, tc: count(Rung::Tc)?, proxy: count(Rung::Proxy)? })
    }
}

/// From the output of `headgate backends --json`, by backend.
#[derive(Clone, Debug)]
pub struct BackendTotals(pub BTreeMap<SocketAddr, Totals>);

impl BackendTotals {
    pub(crate) fn parse(backends: &Value) -> Result<Self> {
        let list = backends.as_array().with_context(|| format!("no list: {backends}"))?;
        let mut totals = BTreeMap::new();
        for backend in list {
            let address = backend["address"].as_str().with_context(|| format!("no address in {backend}"))?;
            let address: SocketAddr = address.parse().with_context(|| format!("address {address:?}"))?;
            totals.insert(address, Totals::of_backend(backend)?);
        }
        Ok(Self(totals))
    }

    pub fn sum(&self) -> Totals {
        self.0.values().fold(Totals::default(), |sum, totals| Totals {
            xdp: sum.xdp + totals.xdp,
            tc: sum.tc + totals.tc,
            proxy: sum.proxy + totals.proxy,
        })
    }

    /// The connections of one backend since `earlier`.
    pub fn of_since(&self, backend: SocketAddr, earlier: &Self) -> Totals {
        let of = |totals: &Self| totals.0.get(&backend).copied().unwrap_or_default();
        of(self).since(of(earlier))
    }
}
