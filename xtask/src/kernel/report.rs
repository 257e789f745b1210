//! What the kernels say of the programs and how many tests passed on them, as a table.

use std::time::Duration;

use anyhow::Result;

use crate::guest::{Passed, Program};

/// Instructions that the verifier looks at before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`).
const LIMIT: u64 = 1_000_000;

/// One kernel.
pub(super) struct Entry {
    pub(super) kernel: String,
    pub(super) took: Duration,
    pub(super) result: Result<Passed>,
}

const RUNGS: [&str; 3] = ["xdp", "tc", "proxy"];

/// The lines for all kernels.
pub(super) fn table(entries: &[Entry]) -> String {
    let mut programs =
        vec![row(["kernel", "program", "verified insns", "of the limit", "JITed bytes", "stack"])];
    let mut tests = vec![row(["kernel", "tests passed", "on xdp", "on tc", "on proxy", "time"])];
    for Entry { kernel, took, result } in entries {
        let kernel = kernel.as_str();
        let took = format!("{:.0} s", took.as_secs_f64());
        let Ok(passed) = result else {
            tests.push(row([kernel, "failed", "", "", "", &took]));
            continue;
        };
        for Program { name, verified, jited, stack } in &passed.programs {
            let share = format!("{:.1} %", *verified as f64 * 100.0 / LIMIT as f64);
            programs.push(row([
                kernel,
                name,
                &verified.to_string(),
                &share,
                &jited.to_string(),
                &stack.to_string(),
            ]));
        }
        let on = RUNGS.map(|rung| passed.tests.iter().filter(|test| rung_of(test) == Some(rung)).count());
        let [xdp, tc, proxy] = on.map(|count| count.to_string());
        tests.push(row([kernel, &passed.count.to_string(), &xdp, &tc, &proxy, &took]));
    }
    if programs.len() > 1 {
        programs.push(String::new());
    } else {
        programs.clear();
    }
    programs.extend(tests);
    programs.join("\n") + "\n"
}

/// The rung that a test's name speaks of, the last if several.
fn rung_of(test: &str) -> Option<&'static str> {
    test.rsplit(['_', ':']).find_map(|word| RUNGS.into_iter().find(|rung| *rung == word))
}

fn row([kernel, what, a, b, c, d]: [&str; 6]) -> String {
    format!("{kernel:<24} {what:<16} {a:>14} {b:>12} {c:>12} {d:>8}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn passed() -> Passed {
        let program =
            |name: &str, verified| Program { name: name.to_owned(), verified, jited: 20_000, stack: 496 };
        let tests = ["a_job_on_tc", "a_job_on_xdp", "from_proxy_to_tc_later", "statistics::statistics"];
        Passed {
            programs: vec![program("lb_tc", 123_456), program("lb_xdp", 9)],
            tests: tests.map(str::to_owned).into(),
            count: 4,
        }
    }

    #[test]
    fn every_kernel_has_its_lines() {
        let entry =
            |kernel: &str, result| Entry { kernel: kernel.to_owned(), took: Duration::from_secs(61), result };
        let table = table(&[entry("6.1.0-56-amd64", Ok(passed())), entry("7.2-amd64", Err(anyhow!("hung")))]);
        let words = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let wanted = [
            "kernel program verified insns of the limit JITed bytes stack",
            "6.1.0-56-amd64 lb_tc 123456 12.3 % 20000 496",
            "6.1.0-56-amd64 lb_xdp 9 0.0 % 20000 496",
            "",
            "kernel tests passed on xdp on tc on proxy time",
            "6.1.0-56-amd64 4 1 2 0 61 s",
            "7.2-amd64 failed 61 s",
        ];
        assert_eq!(words.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn no_programs_no_table_of_them() {
        let result = Ok(Passed { programs: Vec::new(), ..passed() });
        let table = table(&[Entry { kernel: "6.1".to_owned(), took: Duration::ZERO, result }]);
        assert!(table.starts_with("kernel") && !table.contains("verified"), "{table}");
    }
}
