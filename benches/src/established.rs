//! Packets of established flows: Headgate's program, and L beside it on the same packets.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::programs::ProgramFd;
use lb_common::host_packets::verify_checksums;
use lb_common::{Flow, Key, Reason, Rung};
use lb_tests::prog::Bed;

use crate::driver::{Driver, Run, TC_ACT_REDIRECT, XDP_REDIRECT, XDP_TX};
use crate::entries::Family;
use crate::flows::{BACKEND_ISN, ISN, Opened, arriving, counted, ingresses, target};
use crate::measure::Measure;
use crate::tuple::{Pattern, is_of};
use crate::world::Way;

/// Payload, bytes.
const PAYLOAD: usize = 64;

/// A direction of some flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Reverse,
}

/// Packets of the same direction of some flows, in random order.
pub(crate) struct Case<A> {
    driver: Driver,
    rung: Rung,
    reason: Reason,
    action: u32,
    /// How the packets of the tuples leave.
    leaves: Vec<Key<A>>,
    iterations: usize,
}

impl<A: Family> Case<A>
where
    Key<A>: Pod,
    Flow<A>: Pod,
    IpAddr: From<A>,
{
    /// So many packets a round.
    pub(crate) fn new(
        bed: &Bed,
        rung: Rung,
        way: Way,
        direction: Direction,
        flows: &[Opened<A>],
        iterations: usize,
    ) -> Result<Self> {
        let mut order = flows.to_vec();
        fastrand::Rng::with_seed(flows.len() as u64).shuffle(&mut order);
        let (near, far) = ingresses(bed, way);
        let keys = |flow: &Opened<A>| match direction {
            Direction::Forward => (flow.forward, flow.reverse.reversed()),
            Direction::Reverse => (flow.reverse, flow.forward.reversed()),
        };
        let (arrives, leaves): (Vec<_>, Vec<_>) = order.iter().map(keys).unzip();
        let (ingress, reason, sequence, acknowledgement) = match direction {
            Direction::Forward => (near, Reason::FORWARD, ISN + 1, BACKEND_ISN + 1),
            Direction::Reverse => (far, Reason::REVERSE, BACKEND_ISN + 1, ISN + 1),
        };
        let first = arrives.first().context("no flows")?;
        let segment =
            arriving(first, ingress.mac).seq(sequence).ack(acknowledgement).payload(&[0xa5; PAYLOAD]);
        let pattern = Pattern::new(A::V6, &segment);
        let tuples: Vec<_> =
            arrives.iter().map(|key| pattern.tuple(key, sequence, acknowledgement)).collect();
        let mut driver = Driver::new(rung, A::V6, &pattern.frame, ingress.ifindex, tuples.len())?;
        driver.set_tuples(&tuples)?;
        let action = match (rung, way) {
            (Rung::Xdp, Way::OneInterface) => XDP_TX,
            (Rung::Xdp, Way::TwoInterfaces) => XDP_REDIRECT,
            (Rung::Tc, _) => TC_ACT_REDIRECT,
        };
        Ok(Self { driver, rung, reason, action, leaves, iterations })
    }
}

impl<A: Family> Measure for Case<A> {
    fn control(&mut self) -> Result<f64> {
        self.driver.control(self.iterations)
    }

    fn ours(&mut self, bed: &Bed) -> Result<f64> {
        let (iterations, target) = (self.iterations, target(bed, self.rung)?);
        let run = counted(bed, self.rung, self.reason, iterations, || self.driver.run(&target, iterations))?;
        self.check(&run, self.action)?;
        Ok(run.nanoseconds)
    }

    fn other(&mut self, program: &ProgramFd) -> Result<f64> {
        let run = self.driver.run(program, self.iterations)?;
        self.check(&run, XDP_TX)?;
        Ok(run.nanoseconds)
    }
}

impl<A: Family> Case<A> {
    fn check(&self, run: &Run, action: u32) -> Result<()> {
        ensure!(run.action == action, "the last action is {}, not {action}", run.action);
        verify_checksums(&run.output).map_err(anyhow::Error::msg)?;
        let leaves = &self.leaves[run.tuple];
        ensure!(is_of(&run.output, leaves), "the last packet does not leave as {leaves:?}");
        Ok(())
    }
}
