//! The host kernel's verifier takes every program that it can judge without attaching it.
//!
//! Needs root (or `CAP_BPF` and `CAP_PERFMON`) and a kernel with BTF; it fails without them, since a skipped
//! verifier proves nothing.

#[test]
fn the_host_kernel_loads_every_kprobe_and_raw_tracepoint_program() {
    let verified = sdtrace::probes::verify_object().expect("the object loads");
    for (program, instructions) in &verified {
        println!("{program}: {instructions:?} verified instructions");
    }
    for program in [
        "do_wp_page_kprobe",
        "clear_refs_write_kretprobe",
        "sched_process_fork_raw",
    ] {
        assert!(
            verified.iter().any(|(name, _)| name == program),
            "{program} is not in the object"
        );
    }
}
