//! What runs inside the guest of [`crate::kernel`], and what its console must say.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A test program and what to run of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// Arguments of the test program.
    pub(crate) args: Vec<String>,
}

/// The suite that prints what verifier and JIT made of each program.
pub(crate) const STATISTICS: &str = "programs";

/// What a guest's suites had to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Of [`STATISTICS`], if it was among the suites.
    pub(crate) programs: Vec<Program>,
    /// Names of tests, without those whose output is not captured.
    pub(crate) tests: Vec<String>,
    /// All tests.
    pub(crate) count: u64,
}

/// A BPF program on the guest's kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// Instructions that the verifier looked at.
    pub(crate) verified: u64,
    /// Bytes of machine code.
    pub(crate) jited: u64,
    /// Bytes of the deepest chain of calls.
    pub(crate) stack: u64,
}

/// What the guest's lines start with that are not the suites' own.
const MARK: &str = "xtask-guest";

/// `/init` of the initramfs: makes the file system that `/script` runs in. It becomes that script: the kernel's own
/// modprobe runs in the root directory of process 1. What fails ends process 1, and so the guest.
pub(crate) const INIT: &str = r#"#!/bin/busybox sh
set -e
b=/bin/busybox
for module in /modules/*; do $b insmod "$module"; done
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
$b mount -t tmpfs -o mode=755 memory /memory
$b mkdir /memory/upper /memory/work
$b mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /sysroot
$b mount -t proc proc /sysroot/proc
$b mount -t sysfs sysfs /sysroot/sys
$b mount -t bpf bpf /sysroot/sys/fs/bpf
$b mount -t tracefs tracefs /sysroot/sys/kernel/tracing
$b mount -t devtmpfs devtmpfs /sysroot/dev
$b mkdir -p /sysroot/dev/shm
$b mount -t tmpfs -o mode=1777 memory /sysroot/dev/shm
$b mount -t tmpfs -o mode=755 memory /sysroot/run
exec $b chroot /sysroot /bin/sh -c "$($b cat /script)"
"#;

/// The shell script that runs the suites one after the other, each to its end, and powers off. `modules` is the directory of the
/// kernel's modules on the host.
pub(crate) fn script(modules: &Path, headgate: &Path, suites: &[Suite]) -> String {
    let mut script = format!(
        r#"export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run HEADGATE={}
mkdir -p /lib/modules
[ -e "/lib/modules/$(uname -r)" ] || ln -s {} /lib/modules/
suite() {{
    name=$1
    shift
    echo "{MARK}: begin $name"
    "$@" </dev/null 2>&1
    echo "{MARK}: end $name $?"
}}
"#,
        quoted(headgate.to_string_lossy()),
        quoted(modules.to_string_lossy()),
    );
    for suite in suites {
        let own = ["--test-threads=1", "--color=never"].map(Into::into);
        let words = [suite.program.to_string_lossy()].into_iter().chain(own);
        let words = words.chain(suite.args.iter().map(Into::into)).map(quoted);
        script.push_str(&format!("suite {} {}\n", suite.name, words.collect::<Vec<_>>().join(" ")));
    }
    // A warning's lines (TAINT_WARN) do not make a test fail by themselves.
    script.push_str(&format!(
        r#"if [ $(($(cat /proc/sys/kernel/tainted) & 512)) -ne 0 ]; then dmesg | grep -A 30 WARNING; else echo "{MARK}: calm"; fi
busybox poweroff -f
"#
    ));
    script
}

/// Fails unless every suite has run to its end, has passed and was not empty, and the kernel has not warned.
pub(crate) fn judge(lines: &[String], suites: &[Suite]) -> Result<Passed> {
    let mut passed = Passed::default();
    for suite in suites {
        let begin = format!("{MARK}: begin {}", suite.name);
        let end = format!("{MARK}: end {} ", suite.name);
        let Some(begin) = lines.iter().position(|line| *line == begin) else {
            bail!("the guest did not come to {}: see its last lines above", suite.name);
        };
        let lines = &lines[begin..];
        // The last line of a test program that is killed has no end of its own.
        let Some((length, status)) = lines
            .iter()
            .enumerate()
            .find_map(|(number, line)| Some((number, line.find(&end).map(|at| &line[at + end.len()..])?)))
        else {
            bail!("the guest ended in the middle of {}", suite.name);
        };
        if status != "0" {
            bail!("{} failed with status {status}", suite.name);
        }
        let lines = &lines[..length];
        let count = lines.iter().find_map(|line| {
            line.strip_prefix("test result: ok. ")?.split_once(" passed")?.0.parse::<u64>().ok()
        });
        match count {
            None => bail!("{} printed no result", suite.name),
            Some(0) => bail!("{} has no test of {:?}", suite.name, suite.args),
            Some(count) => passed.count += count,
        }
        let names = lines.iter().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"));
        passed.tests.extend(names.map(str::to_owned));
        if suite.name == STATISTICS {
            passed.programs.extend(lines.iter().filter_map(|line| program(line)));
        }
    }
    if !lines.iter().any(|line| *line == format!("{MARK}: calm")) {
        bail!("the kernel printed a warning: see the last lines above");
    }
    Ok(passed)
}

/// A row of the statistics: name, verified instructions, bytes of BPF, bytes of machine code, bytes of stack, and those
/// of each function.
fn program(line: &str) -> Option<Program> {
    let [name, verified, translated, jited, stack, _functions] =
        line.split_whitespace().collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let [verified, _, jited, stack] = [verified, translated, jited, stack].map(|word| word.parse().ok());
    Some(Program { name: name.to_owned(), verified: verified?, jited: jited?, stack: stack? })
}

/// A word of a shell script.
fn quoted(word: impl AsRef<str>) -> String {
    format!("'{}'", word.as_ref().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn suites() -> Vec<Suite> {
        let suite = |name: &str, args: &[&str]| Suite {
            name: name.to_owned(),
            program: PathBuf::from(format!("/target/it's {name}")),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        vec![suite("one", &["a", "b"]), suite("two", &[])]
    }

    fn verdict(text: &str) -> String {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        judge(&lines, &suites()).err().map_or_else(|| "passed".to_owned(), |error| error.to_string())
    }

    const GOOD: &str = "boot
xtask-guest: begin one
test result: ok. 3 passed; 0 failed; 0 ignored
xtask-guest: end one 0
xtask-guest: begin two
test result: ok. 1 passed; 0 failed; 0 ignored
xtask-guest: end two 0
xtask-guest: calm";

    #[test]
    fn only_the_full_console_passes() {
        assert_eq!(verdict(GOOD), "passed");
        // Whatever line is missing, it is no pass.
        let lines: Vec<_> = GOOD.lines().collect();
        for missing in 1..lines.len() {
            let left = [&lines[..missing], &lines[missing + 1..]].concat().join("\n");
            assert_ne!(verdict(&left), "passed", "without {:?}", lines[missing]);
        }
    }

    #[test]
    fn what_passed_is_counted() {
        let text = "xtask-guest: begin programs
test statistics::statistics ... program            verified  BPF bytes      JITed      stack  of functions
headgate_tc            6543       9000      12345        496  136+0+72
headgate_xdp             12         34         56         78  78
ok
test result: ok. 1 passed; 0 failed; 0 ignored
xtask-guest: end programs 0
xtask-guest: begin e2e
test small_job_on_tc ... ok
test result: ok. 1 passed; 0 failed; 0 ignored
xtask-guest: end e2e 0
xtask-guest: calm";
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let suite = |name: &str| Suite { name: name.to_owned(), program: PathBuf::new(), args: Vec::new() };
        let passed = judge(&lines, &[suite(STATISTICS), suite("e2e")]).unwrap();
        let program =
            |name: &str, verified, jited, stack| Program { name: name.to_owned(), verified, jited, stack };
        let programs = vec![program("headgate_tc", 6543, 12345, 496), program("headgate_xdp", 12, 56, 78)];
        assert_eq!(passed, Passed { programs, tests: vec!["small_job_on_tc".to_owned()], count: 2 });
    }

    #[test]
    fn failures_name_the_suite() {
        assert_eq!(verdict(&GOOD.replace("end two 0", "end two 101")), "two failed with status 101");
        assert_eq!(verdict(&GOOD.replace("ok. 3", "ok. 0")), r#"one has no test of ["a", "b"]"#);
        assert_eq!(
            verdict(GOOD.split_once("xtask-guest: end two").unwrap().0),
            "the guest ended in the middle of two"
        );
        assert_eq!(
            verdict(&GOOD.replace("xtask-guest: end two 0", "test late ... xtask-guest: end two 134")),
            "two failed with status 134"
        );
    }

    #[test]
    fn scripts_are_valid_shell() {
        let script =
            script(Path::new("/target/kernels/6.1/lib/modules/x"), Path::new("/target/headgate"), &suites());
        assert!(
            script.contains(r"suite one '/target/it'\''s one' '--test-threads=1' '--color=never' 'a' 'b'"),
            "{script}"
        );
        for script in [INIT, &script] {
            assert!(Command::new("sh").args(["-n", "-c", script]).status().unwrap().success(), "{script}");
        }
    }
}
