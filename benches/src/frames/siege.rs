//! What becomes of a flood's SYNs, and of the flows that were there before.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::{Fate, REASONS};
use lb_common::tables::reason_index;
use lb_common::{Reason, Rung, V4};
use lb_tests::prog::Bed;

use super::clock::Clock;
use super::lane::Lane;
use super::receiver::Receiver;
use super::send;
use super::subject::Subject;
use super::traffic::Traffic;
use crate::driver::Driver;
use crate::entries::established;
use crate::flows::{Opened, counted};

/// Ways on which a SYN of a source of its own may go. Twice the same source is rare but may be. Passed up, to the proxy,
/// are those that find no port or no room.
const SYN_REASONS: [Reason; 6] = [
    Reason::NEW_FLOW,
    Reason::SYN_REPEATED,
    Reason::SYN_RETRIED,
    Reason::NO_PORT,
    Reason::TABLE_FULL,
    Reason::TOMBSTONE,
];

/// A flood on Headgate.
pub(crate) struct Siege {
    rung: Rung,
    /// Sends a packet of each established flow.
    rest: Driver,
    /// Where the SYNs went, over all rounds.
    pub(crate) went: BTreeMap<&'static str, u64>,
    /// SYNs, over all rounds.
    pub(crate) sent: u64,
    /// Flows that were lost, in all rounds together.
    pub(crate) lost: usize,
}

impl Siege {
    pub(crate) fn new(lane: &Lane, rung: Rung) -> Result<Self> {
        let rest = Traffic::Established.sender(lane, Subject::Headgate(rung))?;
        Ok(Self { rung, rest, went: BTreeMap::new(), sent: 0, lost: 0 })
    }

    /// Accounts for SYNs that were sent, of which so many arrived, by what the counters were before.
    pub(crate) fn account(&mut self, bed: &Bed, before: &[u64], sent: u64, arrived: u64) -> Result<()> {
        let after = bed.reasons()?;
        let (mut all, mut forwarded) = (0, 0);
        for (slot, (after, before)) in after.iter().zip(before).enumerate().filter(|(_, (a, b))| a != b) {
            let reason = Reason::from_number((slot % REASONS) as u32);
            let count = after - before;
            ensure!(
                slot == reason_index(self.rung, reason) as usize && SYN_REASONS.contains(&reason),
                "{count} SYNs count as {} ({slot})",
                reason.name()
            );
            *self.went.entry(reason.name()).or_default() += count;
            all += count;
            if reason.fate() == Fate::Forwarded {
                forwarded += count;
            }
        }
        self.sent += sent;
        ensure!(all == sent, "of {sent} SYNs {all} count");
        ensure!(forwarded == arrived, "{forwarded} SYNs count as sent on, {arrived} arrived");
        Ok(())
    }

    /// Looks for each of these flows in the table, and sends a packet of each.
    pub(crate) fn survey(
        &mut self,
        lane: &Lane,
        bed: &Bed,
        flows: &[Opened<V4>],
        receiver: &mut Receiver,
        clock: &Clock,
    ) -> Result<()> {
        let kept: HashSet<_> =
            established::<V4>(&bed.ebpf)?.iter().map(|flow| (flow.forward, flow.reverse)).collect();
        let missing = flows.iter().filter(|flow| !kept.contains(&(flow.forward, flow.reverse))).count();
        receiver.begin()?;
        let through = counted(bed, self.rung, Reason::FORWARD, flows.len(), || {
            send(lane, &mut self.rest, flows.len(), clock)?;
            receiver.end(flows.len() as u64)
        });
        let silent = match through {
            Ok(arrived) => flows.len() - arrived as usize,
            Err(error) if missing == 0 => return Err(error).context("all flows are in the table"),
            Err(_) => missing,
        };
        self.lost += missing.max(silent);
        Ok(())
    }
}
