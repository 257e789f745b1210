//! The two small BPF programs of the harness itself, written as instructions, so that nothing of Headgate's own
//! loader or toolchain is in the peers.
//!
//! They are attached by `ip` and `tc` from a pin, over netlink: such an attachment belongs to the device and ends
//! with its namespace, not with this process (`demo --keep` needs that).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::cmd::run;

/// Where the BPF file system is mounted.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Mounts the BPF file system where it is missing.
pub(crate) fn ensure_bpffs() -> Result<()> {
    // BPF_FS_MAGIC, linux/magic.h
    let mounted = || rustix::fs::statfs(BPFFS).is_ok_and(|stat| stat.f_type == 0xcafe_4a11);
    if mounted() {
        return Ok(());
    }
    // Two test binaries may both find it missing; the second one's failure does not matter then.
    match run("mount", &["-t", "bpf", "bpf", BPFFS]) {
        Err(_) if mounted() => Ok(()),
        result => result.map(drop),
    }
}

/// A loaded program with a name in the BPF file system for as long as this lives.
pub(crate) struct PinnedProgram {
    path: PathBuf,
}

impl PinnedProgram {
    /// `XDP_PASS` for every packet. A veth device accepts frames redirected to its peer only with a program of its
    /// own. It declares fragments, so that the device keeps any MTU.
    pub(crate) fn xdp_pass() -> Result<Self> {
        const XDP_PASS: i32 = 2;
        const BPF_PROG_TYPE_XDP: u32 = 6;
        const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
        Self::load(
            BPF_PROG_TYPE_XDP,
            BPF_F_XDP_HAS_FRAGS,
            &[Instruction::set(0, XDP_PASS), Instruction::EXIT],
        )
    }

    /// For TC: drops a packet with probability `drop` / 2³², else gives it the priority `class` with probability
    /// `delay` / 2³² and leaves the verdict to others.
    pub(crate) fn faults(drop: u32, delay: u32, class: u32) -> Result<Self> {
        const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
        const TC_ACT_UNSPEC: i32 = -1;
        const TC_ACT_SHOT: i32 = 2;
        const SK_BUFF_PRIORITY: i16 = 32;
        Self::load(
            BPF_PROG_TYPE_SCHED_CLS,
            0,
            &[
                Instruction::copy(6, 1),
                Instruction::RANDOM,
                Instruction::skip_if_at_least(0, drop, 2),
                Instruction::set(0, TC_ACT_SHOT),
                Instruction::EXIT,
                Instruction::RANDOM,
                Instruction::skip_if_at_least(0, delay, 2),
                Instruction::set(1, class.cast_signed()),
                Instruction::store(6, SK_BUFF_PRIORITY, 1),
                Instruction::set(0, TC_ACT_UNSPEC),
                Instruction::EXIT,
            ],
        )
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().expect("made of ASCII below")
    }

    fn load(kind: u32, flags: u32, instructions: &[Instruction]) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        ensure_bpffs()?;
        let program = load(kind, flags, instructions).context("cannot load a BPF program of the harness")?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(BPFFS).join(format!("lb-tests-{}-{number}", std::process::id()));
        pin(&program, &path).with_context(|| format!("cannot pin a program as {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for PinnedProgram {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// `struct bpf_insn` of linux/bpf.h; the encodings are those of RFC 9669.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// Destination in the low half, source in the high half.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

impl Instruction {
    pub(crate) const EXIT: Self = Self { code: 0x95, registers: 0, offset: 0, immediate: 0 };
    /// r0 = `bpf_get_prandom_u32()`
    const RANDOM: Self = Self { code: 0x85, registers: 0, offset: 0, immediate: 7 };

    /// r`to` = immediate
    pub(crate) const fn set(to: u8, immediate: i32) -> Self {
        Self { code: 0xb7, registers: to, offset: 0, immediate }
    }

    /// r`to` = r`from`
    pub(crate) const fn copy(to: u8, from: u8) -> Self {
        Self { code: 0xbf, registers: from << 4 | to, offset: 0, immediate: 0 }
    }

    /// *(u32 *)(r`base` + offset) = r`from`
    const fn store(base: u8, offset: i16, from: u8) -> Self {
        Self { code: 0x63, registers: from << 4 | base, offset, immediate: 0 }
    }

    /// if ((u32)r`register` >= limit) skip `count` instructions
    const fn skip_if_at_least(register: u8, limit: u32, count: i16) -> Self {
        Self { code: 0x36, registers: register, offset: count, immediate: limit.cast_signed() }
    }
}

fn load(kind: u32, flags: u32, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that BPF_PROG_LOAD (5) needs.
    #[repr(C)]
    struct Attributes {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let mut attributes = Attributes {
        prog_type: kind,
        insn_cnt: instructions.len().try_into().expect("a handful"),
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: flags,
    };
    let fd = bpf(5, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(program: &OwnedFd, path: &Path) -> Result<()> {
    /// The part of `union bpf_attr` that BPF_OBJ_PIN (6) needs.
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let bpf_fd = program.as_raw_fd().cast_unsigned();
    match bpf(6, &mut Attributes { pathname: name.as_ptr() as u64, bpf_fd, file_flags: 0 }) {
        Ok(_) => Ok(()),
        Err(error) => bail!(error),
    }
}

/// bpf(2). `attributes` must be the structure that `command` expects, with live pointers in it.
pub(crate) fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes at `attributes`, integers all of them, and what its
    // pointers refer to; both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result.try_into().expect("a descriptor or 0"))
    }
}
