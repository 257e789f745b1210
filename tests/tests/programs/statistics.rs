//! What the programs cost the kernel to verify and to hold.

use aya::programs::ProgramInfo;
use lb_tests::verifier;
use lb_userspace::datapath::object::{self, ProgramStatistics};

/// The kernel's limit is 1,000,000; this leaves room for kernels that need more steps for the same program.
const MAX_VERIFIED: u32 = 300_000;
/// Bytes that the deepest chain of calls may take; the kernel's own limit.
const MAX_STACK: u32 = 512;

#[test]
fn statistics() {
    let ebpf = object::load(1024, 0, None).expect("the kernel loads the programs (needs root)").ebpf;
    let stacks = verifier::stacks(object::OBJECT).unwrap();
    let mut rows = Vec::new();
    for (name, program) in ebpf.programs() {
        let info: ProgramInfo = program.info().unwrap();
        let stack = stacks.get(name).unwrap_or_else(|| panic!("no stack of {name}"));
        rows.push((name, ProgramStatistics::from(&info), stack));
    }
    rows.sort_by_key(|(name, ..)| *name);

    println!(
        "{:<18} {:>10} {:>10} {:>10} {:>10}  of functions",
        "program", "verified", "BPF bytes", "JITed", "stack"
    );
    for (name, statistics, stack) in &rows {
        let ProgramStatistics { verified, translated, jited, .. } = statistics;
        let functions = stack.functions.iter().map(u32::to_string).collect::<Vec<_>>().join("+");
        println!("{name:<18} {verified:>10} {translated:>10} {jited:>10} {:>10}  {functions}", stack.deepest);
    }
    assert_eq!(rows.len(), 4, "two programs for XDP, two for TC");
    for (name, statistics, stack) in rows {
        assert!(
            (1..MAX_VERIFIED).contains(&statistics.verified),
            "{name}: {} instructions",
            statistics.verified
        );
        assert!(statistics.jited > 0, "{name} is not JITed: net.core.bpf_jit_enable is 0");
        assert!(stack.deepest <= MAX_STACK, "{name}: {stack:?} bytes of stack");
    }
}
