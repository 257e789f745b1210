//! The programs of Headgate in the kernel: for XDP one for frames in one buffer and one for larger ones, for TC one for
//! Ethernet and one for devices without a link-layer header. They parse, decide, rewrite and send with the
//! code of `lb-common`; here are only the hooks' ways to reach a packet, the maps and the devices.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "atomics, see `maps`"))]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod tc;
#[cfg(target_arch = "bpf")]
mod xdp;

/// A panic that the compiler could not rule out: the verifier rejects the endless loop ("last insn is not an exit
/// or jmp"), so such a program never runs.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Licence of the helpers that the programs call.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("lb-ebpf runs in the kernel: build it with `cargo xtask build-ebpf`");
}
