//! What the kernel's verifier says of a program, beyond what it keeps: the stack of each function.
//!
//! aya has no log of a program that was accepted. So the object is loaded a second time here, with aya's parser and
//! relocations and a `BPF_PROG_LOAD` that asks for the log.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapData;
use aya_obj::generated::{
    bpf_attach_type, bpf_attr__bindgen_ty_4 as ProgramLoad, bpf_attr__bindgen_ty_12 as BtfLoad, bpf_prog_type,
};
use aya_obj::{Function, Object, ProgramSection};

use crate::bpf::bpf;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_BTF_LOAD: libc::c_int = 18;
/// `BPF_LOG_STATS`: the last lines of the log alone.
const LOG_STATISTICS: u32 = 4;

/// The stack of a program, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// What each function takes, in the order of the code. The first is the program itself.
    pub functions: Vec<u32>,
    /// What the deepest chain of calls takes. The kernel allows `MAX_BPF_STACK`, 512, and counts each function in
    /// steps of 16 (`round_up_stack_depth` of kernel/bpf/verifier.c, with the JIT).
    pub deepest: u32,
}

/// The stack of each program of `object`, by the program's name.
pub fn stacks(object: &[u8]) -> Result<HashMap<String, Stack>> {
    let mut object = Object::parse(object)?;
    let features = aya::features();
    let btf = match features.btf() {
        Some(features) => object.fixup_and_sanitize_btf(features)?.map(|btf| btf.to_bytes()),
        None => None,
    };
    let btf = load_btf(&btf.context("neither the object nor the kernel has BTF")?)?;

    let descriptions: Vec<_> = object.maps.drain().collect();
    let maps = descriptions
        .iter()
        .map(|(name, map)| Ok(MapData::create(map.clone(), name, Some(btf.as_fd()))?))
        .collect::<Result<Vec<_>>>()?;
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    let located = descriptions.iter().zip(&maps);
    object.relocate_maps(
        located.map(|((name, map), data)| (name.as_str(), data.fd().as_fd().as_raw_fd(), map)),
        &sections,
    )?;
    object.relocate_calls(&sections)?;
    object.sanitize_functions(features);

    let programs = object.programs.iter();
    programs
        .map(|(name, program)| {
            let function = object.functions.get(&program.function_key()).context("a program without code")?;
            let log = load(name, &program.section, &program.license, function, &btf)?;
            let functions = parse(&log).with_context(|| format!("the log of {name}: {log}"))?;
            let deepest = deepest(&functions, &calls(function)?);
            Ok((name.clone(), Stack { functions, deepest }))
        })
        .collect()
}

/// Of `stack depth 136+0+72` the numbers.
fn parse(log: &str) -> Result<Vec<u32>> {
    let line =
        log.lines().find_map(|line| line.strip_prefix("stack depth ")).context("no line with the stack")?;
    // Newer kernels say the deepest call chain behind the functions' own.
    let list = line.split(' ').next().unwrap_or(line);
    list.split('+').map(|depth| Ok(depth.parse()?)).collect()
}

/// Which functions (by their place in the code) each function calls.
fn calls(function: &Function) -> Result<Vec<Vec<usize>>> {
    /// `BPF_JMP | BPF_CALL` with the source register `BPF_PSEUDO_CALL`: the immediate is relative to what follows.
    const CALL: u8 = 0x85;
    const PSEUDO_CALL: u8 = 1;
    let starts: Vec<_> = function.func_info.func_info.iter().map(|info| i64::from(info.insn_off)).collect();
    let within =
        |at: i64| starts.iter().rposition(|&start| start <= at).context("code in front of all functions");
    let mut calls = vec![Vec::new(); starts.len()];
    for (at, instruction) in (0i64..).zip(&function.instructions) {
        if instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL {
            calls[within(at)?].push(within(at + 1 + i64::from(instruction.imm))?);
        }
    }
    Ok(calls)
}

/// The stack of the deepest chain of calls that begins with the first function. There are no loops: the verifier
/// took the program.
fn deepest(functions: &[u32], calls: &[Vec<usize>]) -> u32 {
    fn from(function: usize, functions: &[u32], calls: &[Vec<usize>]) -> u32 {
        let called = calls[function].iter().map(|&called| from(called, functions, calls)).max();
        functions[function].max(1).next_multiple_of(16) + called.unwrap_or(0)
    }
    from(0, functions, calls)
}

fn load_btf(btf: &[u8]) -> Result<OwnedFd> {
    // SAFETY: a structure of integers.
    let mut attributes: BtfLoad = unsafe { std::mem::zeroed() };
    attributes.btf = btf.as_ptr() as u64;
    attributes.btf_size = btf.len().try_into()?;
    let fd = bpf(BPF_BTF_LOAD, &mut attributes).context("the kernel does not take the object's BTF")?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program, lets it go at once and gives the verifier's log.
fn load(
    name: &str,
    section: &ProgramSection,
    license: &CStr,
    function: &Function,
    btf: &OwnedFd,
) -> Result<String> {
    let (kind, attach) = match section {
        ProgramSection::Xdp { .. } => (bpf_prog_type::BPF_PROG_TYPE_XDP, bpf_attach_type::BPF_XDP as u32),
        ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, 0),
        other => bail!("{name} is no program for XDP or TC but {other:?}"),
    };
    let mut log = vec![0u8; 1 << 16];
    let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
    // SAFETY: a structure of integers.
    let mut load: ProgramLoad = unsafe { std::mem::zeroed() };
    load.prog_type = kind as u32;
    load.expected_attach_type = attach;
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = function.instructions.len().try_into()?;
    load.license = license.as_ptr() as u64;
    load.log_level = LOG_STATISTICS;
    // The kernel writes the log there, before the call returns.
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = log.len().try_into()?;
    load.prog_btf_fd = btf.as_raw_fd().cast_unsigned();
    load.func_info = functions.as_ptr() as u64;
    load.func_info_rec_size = function.func_info_rec_size.try_into()?;
    load.func_info_cnt = function.func_info.len().try_into()?;
    load.line_info = lines.as_ptr() as u64;
    load.line_info_rec_size = function.line_info_rec_size.try_into()?;
    load.line_info_cnt = function.line_info.len().try_into()?;
    let loaded = bpf(BPF_PROG_LOAD, &mut load);
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(&log[..end]).into_owned();
    let fd = loaded.with_context(|| format!("the kernel does not take {name}: {log}"))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    ensure!(!log.is_empty(), "the verifier said nothing of {name}");
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::{deepest, parse};

    #[test]
    fn stack_depths_are_read() {
        let log = "verification time 1 usec\nstack depth 136+0+72\nprocessed 9 insns (limit 1000000)\n";
        assert_eq!(parse(log).unwrap(), [136, 0, 72]);
        assert!(parse("processed 9 insns").is_err());
    }

    #[test]
    fn the_deepest_chain_is_found() {
        // 0 calls 1 and 2, 2 calls 3.
        let calls = [vec![1, 2], vec![], vec![3, 3], vec![]];
        assert_eq!(deepest(&[100, 96, 64, 0], &calls), 112 + 96);
        assert_eq!(deepest(&[100, 16, 64, 40], &calls), 112 + 64 + 48);
    }
}
