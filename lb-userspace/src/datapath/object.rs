//! The BPF object and its loading.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use aya::maps::{Array, Map, MapData};
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use lb_common::SCHEMA_VERSION;
use lb_common::table;
use lb_common::tables::{Settings, constants, names};

/// The compiled programs.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/headgate-ebpf"));

/// The program for XDP.
pub const XDP_PROGRAM: &str = "headgate_xdp";
/// The same for interfaces whose MTU needs frames of several buffers (Linux 5.18).
pub const XDP_FRAGS_PROGRAM: &str = "headgate_xdp_frags";
/// The program for TC.
pub const TC_PROGRAM: &str = "headgate_tc";
/// The same for devices without an Ethernet header.
pub const TC_L3_PROGRAM: &str = "headgate_tc_l3";

/// The flow tables, whose size is a constant of the programs.
pub const FLOW_TABLES: [&str; 2] = [names::FLOWS4, names::FLOWS6];

/// Maps that outlive the agent.
const PINNED: &[&str] = &[
    names::FLOWS4,
    names::FLOWS6,
    names::SERVICES4,
    names::SERVICES6,
    names::ROUTES4,
    names::ROUTES6,
    names::CLUSTERS,
    names::CURSORS,
    names::SLOTS,
    names::BACKENDS,
    names::OPENED,
    names::SERVED,
    names::FAILED,
    names::ACTIVE,
    names::EVENTS,
    names::NEXT_HOPS,
    names::SNAT_ADDRESSES,
    names::SNAT_PORTS,
    names::OCCUPIED,
    names::SETTINGS,
    names::LIVE,
    names::REASONS,
    names::DEVICES,
];

/// Where the pins are, below the directory of `--bpffs`: one directory for each map layout.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins below `bpffs` (`/sys/fs/bpf/headgate` by default).
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{SCHEMA_VERSION}")) }
    }

    /// The directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The directory of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The pin of a flow table that is to take the place of the one of that name.
    pub fn next(&self, name: &str) -> PathBuf {
        self.maps().join(format!("NEXT_{name}"))
    }

    /// Whether maps of an agent are there.
    pub fn exist(&self) -> bool {
        self.map(names::SETTINGS).exists()
    }

    /// Those of other versions of the layout below the same directory, where there are any.
    pub fn of_other_versions(&self) -> Vec<Self> {
        let Some(entries) = self.root.parent().and_then(|parent| std::fs::read_dir(parent).ok()) else {
            return Vec::new();
        };
        let others = entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.root);
        let is_version = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok())
        };
        others.filter(is_version).map(|root| Self { root }).collect()
    }

    /// Where they are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes all pins away; maps and links that nobody else holds end with them.
    pub fn remove(&self) -> Result<()> {
        for directory in [self.links(), self.maps(), self.root.clone()] {
            match std::fs::read_dir(&directory) {
                Ok(entries) => {
                    for entry in entries {
                        let path = entry?.path();
                        if !path.is_dir() {
                            std::fs::remove_file(&path)
                                .with_context(|| format!("removing {}", path.display()))?;
                        }
                    }
                    std::fs::remove_dir(&directory)
                        .with_context(|| format!("removing {}", directory.display()))?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("reading {}", directory.display())),
            }
        }
        // Gone if nothing else lives there.
        if let Some(parent) = self.root.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Lines of the verifier's output that are shown where it rejects a program: the last ones say why.
const VERIFIER_LINES: usize = 12;

/// A loaded object.
pub struct Loaded {
    /// Maps and programs.
    pub ebpf: Ebpf,
    /// Programs that the kernel does not take, and why.
    pub rejected: Vec<Rejected>,
    /// What the flow tables are hashed with.
    pub seed: u64,
}

/// A program that the kernel does not take.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Its name.
    pub program: &'static str,
    /// With the last lines of the verifier.
    pub why: String,
}

/// Loads the programs, with tables for `max_flows` flows of each family, hashed with `seed`. With `pins`, maps that are
/// pinned there are taken over and new ones are pinned. The TC program has to load; what is done without the others is the
/// caller's affair.
pub fn load(max_flows: u32, seed: u64, pins: Option<&Pins>) -> Result<Loaded> {
    load_with(max_flows, seed, pins, Pins::map)
}

/// The same with flow tables beside the pinned ones, see [`Pins::next`], and with all other maps of these.
pub fn load_beside(max_flows: u32, seed: u64, pins: &Pins) -> Result<Loaded> {
    load_with(max_flows, seed, Some(pins), |pins, name| match FLOW_TABLES.contains(&name) {
        true => pins.next(name),
        false => pins.map(name),
    })
}

fn load_with(
    max_flows: u32,
    seed: u64,
    pins: Option<&Pins>,
    pin: impl Fn(&Pins, &str) -> PathBuf,
) -> Result<Loaded> {
    let sets = table::sets(max_flows);
    let mut loader = EbpfLoader::new();
    // Asked for only once the verifier has said no.
    loader.verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS);
    for name in FLOW_TABLES {
        loader.map_max_entries(name, sets);
    }
    loader.override_global(constants::FLOW_SETS, &sets, true);
    loader.override_global(constants::FLOW_SEED, &seed, true);
    let ordered_stores = u32::from(cfg!(target_arch = "x86_64"));
    loader.override_global(constants::ORDERED_STORES, &ordered_stores, true);
    if let Some(pins) = pins {
        for directory in [pins.maps(), pins.links()] {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        for name in PINNED {
            loader.map_pin_path(name, pin(pins, name));
        }
    }
    let mut ebpf = loader.load(OBJECT).context("loading the BPF object")?;
    tc_program(&mut ebpf, TC_PROGRAM)?
        .load()
        .map_err(|error| anyhow!(explain_load(error)))
        .context("the kernel does not take the TC program")?;
    let mut rejected = Vec::new();
    let mut note = |program, result: Result<(), ProgramError>| {
        if let Err(error) = result {
            rejected.push(Rejected { program, why: explain_load(error) });
        }
    };
    note(TC_L3_PROGRAM, tc_program(&mut ebpf, TC_L3_PROGRAM)?.load());
    for name in [XDP_PROGRAM, XDP_FRAGS_PROGRAM] {
        note(name, xdp_program(&mut ebpf, name)?.load());
    }
    Ok(Loaded { ebpf, rejected, seed })
}

/// A TC program of the object.
pub fn tc_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// An XDP program of the object.
pub fn xdp_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Why a program was not taken; of the verifier's output the end alone, which is where the reason stands.
fn explain_load(error: ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(VERIFIER_LINES)..];
    if last.is_empty() {
        return io_error.to_string();
    }
    format!("{io_error}; the verifier's last lines:\n  {}", last.join("\n  "))
}

/// Flows that the pinned tables are for, and what they are hashed with, if there are any.
pub fn pinned_tables(pins: &Pins) -> Result<Option<(u32, u64)>> {
    if !pins.exist() {
        return Ok(None);
    }
    let info = MapData::from_pin(pins.map(names::FLOWS4))?.info()?;
    let settings = Map::from_map_data(MapData::from_pin(pins.map(names::SETTINGS))?)?;
    let settings: Array<_, Settings> = settings.try_into()?;
    Ok(Some((table::max_flows(info.max_entries()), settings.get(&0, 0)?.seed)))
}

/// What the kernel says of a loaded program.
#[derive(Clone, Debug)]
pub struct ProgramStatistics {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier looked at.
    pub verified: u32,
    /// Bytes of machine code.
    pub jited: u32,
    /// Bytes of BPF instructions.
    pub translated: u32,
}

impl From<&ProgramInfo> for ProgramStatistics {
    fn from(info: &ProgramInfo) -> Self {
        Self {
            name: info.name_as_str().unwrap_or_default().to_owned(),
            verified: info.verified_instruction_count().unwrap_or_default(),
            jited: info.size_jitted(),
            translated: info.size_translated().unwrap_or_default(),
        }
    }
}
