//! Flow tables of another size, while packets flow.
//!
//! The number of sets is a constant of the programs, so another one means other programs and tables; all other maps are
//! shared by their pins. The new ones are loaded beside the old ones, and then:
//!
//! 1. No flows are opened any more: SYNs go up to the proxy. The old tables gain nothing but tombstones.
//! 2. All entries are copied. If flows have no room, that was all, and the old tables go on.
//! 3. Handshakes under way have a moment to come to their end: the two directions of one may meet different tables in the
//!    next step, and a client's ACK that finds no trace of the SYN-ACK goes up, where it is answered with a RST.
//! 4. The programs on the interfaces are replaced, one after the other. An established flow has its entries in both tables, so
//!    that it does not matter which packet meets which.
//! 5. When no old program runs any more, the new entries are brought up to what the old ones have seen since they were copied.
//! 6. The new tables take over the pins, and flows are opened again.
//!
//! An agent that dies on the way leaves both tables pinned; open flows go on by whatever programs are on the interfaces, and no
//! new ones are opened. The next agent goes through all steps again ([`resume`]): what step 2 finds in the new tables it only
//! brings up to date. The new tables may be those that packets meet already, so the change is not given up any more.

use std::collections::HashSet;
use std::hash::Hash;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::maps::MapData;
use lb_common::flow::mark;
use lb_common::table::{self, HALF_OPEN_LIMIT};
use lb_common::tables::{Live, Settings, names};
use lb_common::tcp::{is_closing, must_rest, state};
use lb_common::{Address, Flow, Key, V4, V6};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::datapath::attach;
use crate::datapath::flow_table::{FlowTable, Look, Occupied};
use crate::datapath::kernel::monotonic_now;
use crate::datapath::mapped::Mapped;
use crate::datapath::object::{self, FLOW_TABLES, Loaded, Pins};
use crate::net::Link;

/// How long handshakes are waited for: those of clients that answer at all are done in a round trip.
const HANDSHAKES: Duration = Duration::from_millis(500);
/// How often is looked whether they are.
const LOOK: Duration = Duration::from_millis(20);
/// How long a program runs at the most, by far.
const GRACE: Duration = Duration::from_millis(50);

/// What has taken the place of the old programs and tables.
pub struct Resized {
    pub loaded: Loaded,
    /// Indices of interfaces whose programs could not be replaced in place: they want to be attached to anew.
    pub failed: Vec<u32>,
}

/// Goes over to tables for `max_flows` flows of each family. An error: the old ones go on as if nothing had been.
pub fn resize(pins: &Pins, links: &[Link], max_flows: u32) -> Result<Resized> {
    // Tables of another size would be taken for the new ones.
    remove_next(pins)?;
    let result = resize_into_next(pins, links, max_flows, false);
    if result.is_err()
        && let Err(error) = remove_next(pins)
    {
        log::warn!("{error:#}");
    }
    result
}

/// The same with new tables that may be there already; `in_use`: programs may be at work on them.
fn resize_into_next(pins: &Pins, links: &[Link], max_flows: u32, in_use: bool) -> Result<Resized> {
    let (_, seed) = object::pinned_tables(pins)?.context("there are no flow tables")?;
    go_over(pins, links, object::load_beside(max_flows, seed, pins)?, in_use)
}

/// Completes what an agent that died left half-way, if one did.
pub fn resume(pins: &Pins, links: &[Link]) -> Result<Option<Resized>> {
    let [next4, next6] = [sets(&pins.next(names::FLOWS4))?, sets(&pins.next(names::FLOWS6))?];
    match (next4, next6) {
        (None, None) => Ok(None),
        (Some(sets), Some(_)) => {
            log::info!("an earlier agent has not come to the end of a change of the flow tables");
            resize_into_next(pins, links, table::max_flows(sets), true).map(Some)
        }
        // One has gone over and the other has not, or is not to.
        (Some(_), None) if next4 == sets(&pins.map(names::FLOWS6))? => take_pins(pins).map(|()| None),
        (None, Some(_)) if next6 == sets(&pins.map(names::FLOWS4))? => take_pins(pins).map(|()| None),
        _ => remove_next(pins).map(|()| None),
    }
}

/// Sets of a pinned table, if there is one.
fn sets(pin: &Path) -> Result<Option<u32>> {
    Ok(if pin.exists() { Some(open(pin)?.info()?.max_entries()) } else { None })
}

/// Puts the new tables where the old ones are pinned.
fn take_pins(pins: &Pins) -> Result<()> {
    for_next(pins, |next, current| std::fs::rename(next, current))
}

/// Takes away the pins of tables that do not come to be used.
fn remove_next(pins: &Pins) -> Result<()> {
    for_next(pins, |next, _| std::fs::remove_file(next))
}

/// Does something with the pin of each new table that is there, and that of the table it is to take the place of.
fn for_next(pins: &Pins, act: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<()> {
    for name in FLOW_TABLES {
        let next = pins.next(name);
        match act(&next, &pins.map(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("the pin {}", next.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A pinned map.
fn open(pin: &Path) -> Result<MapData> {
    MapData::from_pin(pin).with_context(|| format!("opening {}", pin.display()))
}

/// The old table of that name, and the new one.
fn tables<A: Address>(pins: &Pins, name: &str, seed: u64) -> Result<[FlowTable<A>; 2]> {
    let family = u32::from(A::V6);
    let occupied = Arc::new(Mapped::<u64>::new(&open(&pins.map(names::OCCUPIED))?)?);
    let occupied = || Some(Occupied::new(Arc::clone(&occupied), family));
    Ok([
        FlowTable::new(open(&pins.map(name))?, seed, occupied())?,
        FlowTable::new(open(&pins.next(name))?, seed, occupied())?,
    ])
}

/// The steps with tables that are pinned beside the old ones.
fn go_over(pins: &Pins, links: &[Link], mut loaded: Loaded, in_use: bool) -> Result<Resized> {
    let began = Instant::now();
    let [old4, new4] = tables::<V4>(pins, names::FLOWS4, loaded.seed)?;
    let [old6, new6] = tables::<V6>(pins, names::FLOWS6, loaded.seed)?;
    let settings = Mapped::<Settings>::new(&open(&pins.map(names::SETTINGS))?)?;
    let live = Mapped::<Live>::new(&open(&pins.map(names::LIVE))?)?;
    let links: Vec<&Link> = {
        let attached = attach::attached(pins);
        links.iter().filter(|link| attached.contains(&link.index)).collect()
    };

    let mut frozen = Frozen::new(&settings, old4.max_flows());
    let (mut v4, mut v6) = (Move::new(&old4, &new4), Move::new(&old6, &new6));
    v4.copy(in_use)?;
    v6.copy(in_use)?;
    let deadline = Instant::now() + HANDSHAKES;
    while v4.settle()? + v6.settle()? > 0 && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }

    let mut failed = Vec::new();
    for link in links {
        if let Err(error) = replace(&mut loaded, pins, link) {
            log::warn!("{}: {error:#}", link.name);
            failed.push(link.index);
        }
    }
    // From here on the new ones carry the packets, whatever happens.
    v4.settle().map(drop).unwrap_or_else(complain);
    v6.settle().map(drop).unwrap_or_else(complain);
    await_programs();
    v4.catch_up().unwrap_or_else(complain);
    v6.catch_up().unwrap_or_else(complain);
    recount(&live, 0, &new4).unwrap_or_else(complain);
    recount(&live, 1, &new6).unwrap_or_else(complain);
    take_pins(pins).unwrap_or_else(complain);
    frozen.max_flows = new4.max_flows();
    log::info!(
        "flow tables for {} flows instead of {}: {} entries moved, {} of ended flows left behind, in {:.0?}",
        new4.max_flows(),
        old4.max_flows(),
        v4.moved + v6.moved,
        v4.left + v6.left,
        began.elapsed()
    );
    Ok(Resized { loaded, failed })
}

/// Puts the new programs on an interface. If it does not take them the old ones go too: they would open flows that nobody
/// knows of.
fn replace(loaded: &mut Loaded, pins: &Pins, link: &Link) -> Result<()> {
    let Err(error) = attach::replace(&mut loaded.ebpf, pins, link) else { return Ok(()) };
    // Once more: there is much to lose.
    if attach::replace(&mut loaded.ebpf, pins, link).is_err() {
        attach::detach(pins, link.index, Some(&link.name))?;
    }
    Err(error)
}

/// Of what cannot be taken back.
fn complain(error: anyhow::Error) {
    log::error!("not all that the flows did during the change of their tables is known: {error:#}");
}

/// Waits until no program runs that began before. Programs run in read-side sections of RCU, whose end this system call
/// waits for; with CPUs without a timer tick (`nohz_full`) the kernel does not offer it.
fn await_programs() {
    if membarrier(MembarrierCommand::Global).is_err() {
        std::thread::sleep(GRACE);
    }
}

/// As long as this lives no flows are opened.
struct Frozen<'s> {
    settings: &'s Mapped<Settings>,
    /// The limit from then on.
    max_flows: u32,
}

impl<'s> Frozen<'s> {
    /// Afterwards the limit is what it was, or `max_flows` if it was frozen before.
    fn new(settings: &'s Mapped<Settings>, max_flows: u32) -> Self {
        let max_flows = Some(settings.get(0).max_flows).filter(|&limit| limit != 0).unwrap_or(max_flows);
        let frozen = Self { settings, max_flows };
        frozen.store(0);
        await_programs();
        frozen
    }

    fn store(&self, max_flows: u32) {
        let snat_ports = self.settings.get(0).snat_ports;
        self.settings.store(0, max_flows as u64 | (snat_ports as u64) << 32);
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.store(self.max_flows);
    }
}

/// What an entry is worth where there is no room for all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// Of a flow that is open, or that its backend has answered: it must not be lost.
    Live,
    /// A SYN without an answer, of which there may be a flood.
    Opening,
    /// Keeps a port at rest.
    Resting,
    /// Of a flow that has ended, or a SYN that went up.
    Ended,
}

fn worth<A: Address>(flow: &Flow<A>, now: u64) -> Worth {
    if !flow.is_established() {
        let waits = !flow.is_tombstone() && now.saturating_sub(flow.last_seen) <= HALF_OPEN_LIMIT;
        return match waits {
            true if flow.word & mark::ANSWERED != 0 => Worth::Live,
            true => Worth::Opening,
            false => Worth::Ended,
        };
    }
    match is_closing(flow.word) {
        false => Worth::Live,
        true if must_rest(flow.word) && !flow.is_forward() => Worth::Resting,
        true => Worth::Ended,
    }
}

/// The entries of one family on their way.
struct Move<'t, A> {
    old: Look<'t, A>,
    new: Look<'t, A>,
    /// Entries of handshakes under way.
    opening: Vec<Key<A>>,
    /// Entries that were marked as reset when they were copied.
    reset: HashSet<Key<A>>,
    moved: u64,
    /// Of ended flows, without room.
    left: u64,
}

impl<'t, A: Address + Hash + Eq> Move<'t, A> {
    fn new(old: &'t FlowTable<A>, new: &'t FlowTable<A>) -> Self {
        let (opening, reset) = (Vec::new(), HashSet::new());
        let (old, new) = (old.look_everywhere(), new.look_everywhere());
        Self { old, new, opening, reset, moved: 0, left: 0 }
    }

    /// Brings the new table's entry up to `flow`; whether there is one, or room for one.
    fn carry(&mut self, flow: &Flow<A>) -> Result<bool> {
        let was_reset = self.reset.contains(&flow.key);
        let is_reset = flow.word & state::RESET != 0;
        // That it was copied as reset is not news: data may have revived the copy.
        let mut news = *flow;
        if was_reset {
            news.word &= !state::RESET;
        }
        if self.new.follow(&news, was_reset && !is_reset)? {
            return Ok(true);
        }
        let inserted = self.new.insert(flow)?;
        self.moved += u64::from(inserted);
        Ok(inserted)
    }

    /// Copies all entries, first those that must not be lost. An error if they have no room, unless the new table is
    /// `in_use` already.
    fn copy(&mut self, in_use: bool) -> Result<()> {
        let (now, old) = (monotonic_now(), self.old.table());
        let max_flows = self.new.table().max_flows();
        let (mut live, mut homeless) = (0, 0u32);
        for kind in [Worth::Live, Worth::Opening, Worth::Resting, Worth::Ended] {
            old.try_for_each(|flow| {
                let is = worth(flow, now);
                // In the end all that is not there yet: what an entry is worth may have changed meanwhile.
                if is != kind && kind != Worth::Ended {
                    return Ok(());
                }
                if kind == Worth::Live {
                    live += u32::from(flow.is_established() && !flow.is_forward());
                }
                if !flow.is_established() && kind != Worth::Ended {
                    self.opening.push(flow.key);
                }
                let carried = self.carry(flow)?;
                if flow.word & state::RESET != 0 {
                    self.reset.insert(flow.key);
                }
                match is {
                    Worth::Live => homeless += u32::from(!carried),
                    _ if kind == Worth::Ended => self.left += u64::from(!carried),
                    _ => {}
                }
                Ok(())
            })?;
            let family = if A::V6 { "IPv6" } else { "IPv4" };
            if live > max_flows && !in_use {
                bail!("{live} {family} flows are open, which tables for {max_flows} cannot hold");
            }
            if homeless > 0 && !in_use {
                bail!(
                    "{live} {family} flows are open, of which {homeless} entries find no room in tables for {max_flows}: \
                     a somewhat larger number will do"
                );
            }
        }
        Ok(())
    }

    /// Brings handshakes up to date; how many are still under way.
    fn settle(&mut self) -> Result<usize> {
        for key in std::mem::take(&mut self.opening) {
            if let Some(flow) = self.old.find(&key)? {
                self.carry(&flow)?;
                if flow.word & (mark::ESTABLISHED | mark::TOMBSTONE) == 0 {
                    self.opening.push(key);
                }
            }
        }
        Ok(self.opening.len())
    }

    /// Adds what the old entries have seen since.
    fn catch_up(&mut self) -> Result<()> {
        let old = self.old.table();
        old.try_for_each(|flow| self.carry(flow).map(drop))
    }
}

/// Sets the number of live flows of the family with this index in [`Live`] to what is in its table: flows that gave way
/// to others in one of two tables count wrongly. By a difference, so that flows that end meanwhile count too.
fn recount<A: Address>(live: &Mapped<Live>, index: u32, table: &FlowTable<A>) -> Result<()> {
    let Live { opened, closed, .. } = live.get(index);
    let mut count = 0;
    table.for_each(|flow| count += u64::from(flow.is_established() && !flow.is_forward()))?;
    let missing = opened.wrapping_sub(count).wrapping_sub(closed);
    // The second word of `Live`.
    live.word(index, 1).fetch_add(missing, Ordering::Relaxed);
    Ok(())
}
