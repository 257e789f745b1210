//! Looking at the connections that are open: what has ended, what has reached a limit, what is to be reset.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::agent::accounts::{Open, Over};
use crate::agent::{Agent, HOUSEKEEPING};
use crate::endpoints::Name;

/// How often at the most it looks at all connections; how many times as long as a look took there is none, so that it takes
/// 2 % of a CPU at the most.
const LOOKING: Duration = Duration::from_millis(250);
const LOOK_PAUSE: u32 = 50;

impl Agent {
    /// Hears what has become of flows, and takes those out that have ended.
    pub(super) fn look_after_flows(&mut self) {
        self.hear();
        let begin = Instant::now();
        if self.find_cuts(begin) {
            self.next_look = begin;
        }
        if begin < self.next_look {
            return;
        }
        let over = Over::now(&self.connections);
        let mut found = Vec::new();
        let mut pause = LOOKING;
        let swept = self.kernel.as_mut().map(|kernel| kernel.sweep(&self.endpoints, &self.cuts, &mut found));
        match swept {
            Some(Err(error)) => {
                log::error!("taking ended flows out: {error:#}");
                pause = HOUSEKEEPING;
                self.found(found);
            }
            swept => {
                self.last_good_look = Some(begin);
                self.account(over, begin);
                self.found(found);
                let swept = swept.and_then(Result::ok).unwrap_or_default();
                self.connections.logs.count_dropped(swept.untold);
                if swept.changed {
                    self.update_maps("the end of flows");
                }
                if !swept.is_behind {
                    pause = pause.max(begin.elapsed() * LOOK_PAUSE);
                }
            }
        }
        self.next_look = begin + pause;
    }

    /// Finds the endpoints whose connections are to be reset now, and resets those of the proxy. Whether there are others than
    /// before.
    fn find_cuts(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.last_cuts) < LOOKING {
            return false;
        }
        self.last_cuts = now;
        let node = self.node_drained.and_then(|out| out.due(now));
        let due = self.endpoints.iter().filter_map(|(cluster, address, member)| {
            let older_than = member.cut_due(now).into_iter().chain(node).max()?;
            Some(((cluster.to_owned(), address), older_than))
        });
        let cuts: BTreeMap<Name, Instant> = due.collect();
        let is_proxied = |(cluster, address): &Name| {
            let backend = self.balancers.get(cluster).and_then(|balancer| balancer.backend(*address));
            backend.is_some_and(|backend| backend.open.proxied() > 0)
        };
        let mut proxied: HashMap<&str, HashMap<SocketAddr, Instant>> = HashMap::new();
        for (name, older_than) in cuts.iter().filter(|(name, _)| is_proxied(name)) {
            proxied.entry(&name.0).or_default().insert(name.1, *older_than);
        }
        if !proxied.is_empty() {
            self.proxy.cut(&|cluster, backend| proxied.get(cluster)?.get(&backend).copied());
        }
        let changed = cuts != self.cuts;
        self.cuts = cuts;
        changed
    }

    /// Adds what open connections carry to what those that are over have carried, and logs lines in between.
    fn account(&mut self, over: Over, begin: Instant) {
        let mut open = Open::default();
        for record in self.proxy.records() {
            open.proxied(&record);
            self.tell_if_due(&record, begin - self.last_look);
        }
        if let Some(kernel) = &self.kernel {
            kernel.add_open(&mut open);
        }
        self.accounts.update(over, open);
        self.last_look = begin;
    }
}
