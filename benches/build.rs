//! Builds the BPF programs of the benchmark: `$OUT_DIR/bench-ebpf`.

fn main() -> anyhow::Result<()> {
    bpf_build::build("lb-bench-ebpf", "bench-ebpf", &["ebpf"])
}
