//! The listing of all connections. There may be a million of them: it is made beside the agent, not by it, and goes out in
//! pieces.

use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use lb_common::{Address, V4, V6};

use crate::datapath::flow_table::FlowTable;
use crate::datapath::kernel::monotonic_now;
use crate::flows::{FlowFilter, FlowRow, proxied_rows};
use crate::proxy::ProxiedFlow;

/// Where connections are listed.
pub struct Listing {
    /// The kernel's, if it carries any.
    pub tables: Option<Tables>,
    /// The proxy's.
    pub proxied: Vec<ProxiedFlow>,
}

/// The flow tables of both families.
pub struct Tables {
    pub v4: Arc<FlowTable<V4>>,
    pub v6: Arc<FlowTable<V6>>,
}

impl Listing {
    /// Writes the connections that pass, the ones that were active last first: a list in JSON, a line for each.
    pub fn write(self, filter: &FlowFilter, out: &mut impl Write) -> Result<()> {
        let rows = self.rows(filter)?;
        let mut separator = "[\n";
        for row in in_order(&rows, filter.limit) {
            out.write_all(separator.as_bytes())?;
            serde_json::to_writer(&mut *out, row)?;
            separator = ",\n";
        }
        out.write_all(if separator == "[\n" { b"[]\n" } else { b"\n]\n" })?;
        Ok(out.flush()?)
    }

    /// How many connections keep each backend busy.
    pub fn open_by_backend(self) -> Result<HashMap<SocketAddr, u64>> {
        let mut open = HashMap::new();
        self.for_each(|row| {
            if let Some(backend) = row.open_to() {
                *open.entry(backend).or_default() += 1;
            }
        })?;
        Ok(open)
    }

    /// The connections that pass, in no order, and as many as there are.
    pub fn rows(self, filter: &FlowFilter) -> Result<Vec<FlowRow>> {
        let mut rows = Vec::new();
        self.for_each(|row| {
            if filter.shows(&row) {
                rows.push(row);
            }
        })?;
        Ok(rows)
    }

    fn for_each(self, mut visit: impl FnMut(FlowRow)) -> Result<()> {
        if let Some(Tables { v4, v6 }) = &self.tables {
            let now = monotonic_now();
            each(v4, now, &mut visit)?;
            each(v6, now, &mut visit)?;
        }
        proxied_rows(self.proxied).for_each(visit);
        Ok(())
    }
}

fn each<A: Address + Into<IpAddr>>(
    table: &FlowTable<A>,
    now: u64,
    visit: &mut impl FnMut(FlowRow),
) -> Result<()> {
    table.for_each_flow(|forward, back| {
        if let Some(row) = FlowRow::of(forward, back, now) {
            visit(row);
        }
    })
}

/// The first `limit` rows, the ones that were active last first, of these the youngest.
pub fn in_order(rows: &[FlowRow], limit: Option<usize>) -> impl Iterator<Item = &FlowRow> {
    // Small keys are what is moved around, not rows.
    let milliseconds = |seconds: f64| (seconds * 1e3).round() as u32;
    let key = |row: &FlowRow| (milliseconds(row.idle_s), milliseconds(row.age_s));
    let mut order: Vec<_> = rows.iter().zip(0u32..).map(|(row, index)| (key(row), index)).collect();
    if let Some(limit) = limit
        && limit < order.len()
    {
        order.select_nth_unstable(limit);
        order.truncate(limit);
    }
    order.sort_unstable();
    order.into_iter().map(|(_, index)| &rows[index as usize])
}
