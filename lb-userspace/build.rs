//! Builds the BPF object that the agent carries: `$OUT_DIR/headgate-ebpf`.

fn main() -> anyhow::Result<()> {
    bpf_build::build(
        "lb-ebpf",
        "headgate-ebpf",
        &["../lb-ebpf", "../lb-common/src", "../lb-common/Cargo.toml"],
    )
}
