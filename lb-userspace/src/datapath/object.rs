//! The BPF object and its loading.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::MapData;
use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use lb_common::SCHEMA_VERSION;
use lb_common::tables::{flow_entries, names};

/// The compiled programs.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/headgate-ebpf"));

/// The program for XDP.
pub const XDP_PROGRAM: &str = "headgate_xdp";
/// The program for TC.
pub const TC_PROGRAM: &str = "headgate_tc";

/// Maps that outlive the agent.
const PINNED: &[&str] = &[
    names::FLOWS4,
    names::FLOWS6,
    names::HALF4,
    names::HALF6,
    names::SERVICES4,
    names::SERVICES6,
    names::ROUTES4,
    names::ROUTES6,
    names::CLUSTERS,
    names::CURSORS,
    names::SLOTS,
    names::BACKENDS,
    names::OPENED,
    names::NEXT_HOPS,
    names::SNAT_ADDRESSES,
    names::SNAT_PORTS,
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

    /// Whether maps of an agent are there.
    pub fn exist(&self) -> bool {
        self.map(names::SETTINGS).exists()
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

/// Loads both programs, with maps for `max_flows` flows of each family. With `pins`, maps that are pinned there are
/// taken over and new ones are pinned.
pub fn load(max_flows: u32, pins: Option<&Pins>) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for name in [names::FLOWS4, names::FLOWS6] {
        loader.map_max_entries(name, flow_entries(max_flows));
    }
    if let Some(pins) = pins {
        for directory in [pins.maps(), pins.links()] {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        for name in PINNED {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(OBJECT).context("loading the BPF object")?;
    let xdp: &mut Xdp = ebpf.program_mut(XDP_PROGRAM).context("the object has no XDP program")?.try_into()?;
    xdp.load().context("the kernel does not take the XDP program")?;
    let tc: &mut SchedClassifier =
        ebpf.program_mut(TC_PROGRAM).context("the object has no TC program")?.try_into()?;
    tc.load().context("the kernel does not take the TC program")?;
    Ok(ebpf)
}

/// Flows that the pinned maps hold, if there are any: an agent that takes them over cannot change it.
pub fn pinned_max_flows(pins: &Pins) -> Result<Option<u32>> {
    if !pins.exist() {
        return Ok(None);
    }
    let info = MapData::from_pin(pins.map(names::FLOWS4))?.info()?;
    let entries = info.max_entries();
    let extra = flow_entries(0);
    if entries <= extra {
        bail!(
            "{} is no flow map of this version; `headgate unload` takes it away",
            pins.map(names::FLOWS4).display()
        );
    }
    Ok(Some((entries - extra) / 2))
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
