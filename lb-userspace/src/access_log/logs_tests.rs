use std::fs;

use super::super::tests::{Directory, record, soon};
use super::*;

fn log(path: &Path, format: &str) -> AccessLog {
    AccessLog {
        path: path.to_owned(),
        format: Format::text(format).unwrap(),
        flush_interval: None,
        on_connect: false,
        on_start: false,
    }
}

fn of(listener: &str, kind: Kind) -> Record {
    Record { kind, listener: listener.into(), ..record() }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn each_log_gets_the_kinds_that_it_wants() {
    let directory = Directory::new();
    let (one, two) = (directory.join("one.log"), directory.join("two.log"));
    let all = AccessLog {
        flush_interval: Some(Duration::from_secs(1)),
        on_connect: true,
        on_start: true,
        ..log(&one, "%ACCESS_LOG_TYPE%\n")
    };
    let configured =
        [("http", &[all, log(&two, "%BYTES_RECEIVED%\n")][..]), ("https", &[log(&two, "https\n")])];
    let logs = AccessLogs::open(configured).unwrap();
    for kind in [Kind::Start, Kind::Connected, Kind::Periodic, Kind::End] {
        logs.log(&of("http", kind));
        logs.log(&of("https", kind));
        logs.log(&of("unknown", kind));
        assert!(logs.wants("http", kind));
        assert_eq!(logs.wants("https", kind), kind == Kind::End);
        assert!(!logs.wants("unknown", kind));
    }
    assert!(logs.close(Duration::from_secs(20)));
    assert_eq!(read(&one), "TcpConnectionStart\nTcpUpstreamConnected\nTcpPeriodic\nTcpConnectionEnd\n");
    assert_eq!(read(&two), "5\nhttps\n");
    assert_eq!(logs.dropped(), 0);
    logs.log(&of("https", Kind::End));
    assert_eq!((logs.dropped(), logs.dropped_by_path()), (1, BTreeMap::from([(one, 0), (two, 1)])));
}

#[test]
fn a_listener_that_is_gone_keeps_its_logs() {
    let directory = Directory::new();
    let (one, two) = (directory.join("one.log"), directory.join("two.log"));
    let logs = AccessLogs::open([("http", &[log(&one, "old\n")][..])]).unwrap();
    logs.reconfigure([("https", &[log(&two, "new\n")][..])]).unwrap();
    logs.log(&of("http", Kind::End));
    logs.log(&of("https", Kind::End));
    assert_eq!(logs.dropped_by_path().len(), 2);
    // It comes back, to the same file.
    logs.reconfigure([("http", &[log(&one, "back\n")][..])]).unwrap();
    logs.log(&of("http", Kind::End));
    // Many others come and go.
    for listener in 0..2 * MAX_GONE {
        logs.reconfigure([(&*listener.to_string(), &[log(&two, "x\n")][..])]).unwrap();
    }
    logs.log(&of("http", Kind::End));
    assert_eq!(logs.read(|state| state.gone.len()), MAX_GONE);
    // The file's own thread writes what is left when the file is closed.
    assert_eq!(logs.dropped_by_path().len(), 1);
    drop(logs);
    eventually(|| read(&one) == "old\nback\n");
    assert_eq!(read(&two), "new\n");
}

/// The thread of a file that is not in use any more writes what is left; it cannot be waited for.
fn eventually(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn no_line_is_lost_while_logs_change() {
    const RECORDS: usize = 3_000;
    let directory = Directory::new();
    let paths = [directory.join("one.log"), directory.join("two.log")];
    let configured = paths.each_ref().map(|path| [log(path, "%CONNECTION_ID%\n")]);
    let logs = AccessLogs::open([("http", &configured[0][..])]).unwrap();
    std::thread::scope(|scope| {
        let threads = [0, 1, 2].map(|thread| {
            let logs = &logs;
            scope.spawn(move || {
                for id in 0..RECORDS {
                    logs.log(&Record { id: (id * 3 + thread) as u64, ..of("http", Kind::End) });
                }
            })
        });
        for change in 1.. {
            logs.reconfigure([("http", &configured[change % 2][..])]).unwrap();
            logs.reopen();
            if threads.iter().all(|thread| thread.is_finished()) {
                break;
            }
        }
    });
    let lines = || -> Vec<u64> {
        let all = paths.iter().flat_map(|path| fs::read_to_string(path).unwrap_or_default().into_bytes());
        let text = String::from_utf8(all.collect()).unwrap();
        let mut ids: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        ids.sort_unstable();
        ids
    };
    eventually(|| lines().len() == 3 * RECORDS);
    assert_eq!(lines(), (0..3 * RECORDS as u64).collect::<Vec<u64>>());
    assert_eq!(logs.dropped(), 0);
}

#[test]
fn an_error_changes_nothing() {
    let directory = Directory::new();
    let (one, two) = (directory.join("one.log"), directory.join("two.log"));
    let missing = directory.join("missing/three.log");
    let broken = [log(&two, "b\n"), log(&missing, "c\n")];
    assert!(AccessLogs::open([("http", &broken[..])]).is_err());
    let logs = AccessLogs::open([("http", &[log(&one, "a\n")][..])]).unwrap();
    let error = logs.reconfigure([("http", &broken[..])]).unwrap_err().to_string();
    assert!(error.contains(&missing.display().to_string()), "{error}");
    assert!(!two.exists());
    logs.log(&of("http", Kind::End));
    assert!(logs.close(Duration::from_secs(20)));
    assert_eq!(read(&one), "a\n");
}

#[test]
fn reopening_concerns_all_files() {
    let directory = Directory::new();
    let paths = [directory.join("one.log"), directory.join("two.log")];
    let configured = paths.each_ref().map(|path| [log(path, "x\n")]);
    let logs = AccessLogs::open([("a", &configured[0][..]), ("b", &configured[1][..])]).unwrap();
    for path in &paths {
        fs::rename(path, path.with_extension("1")).unwrap();
    }
    logs.reopen();
    logs.log(&of("a", Kind::End));
    logs.log(&of("b", Kind::End));
    assert!(logs.close(Duration::from_secs(20)));
    for path in &paths {
        assert_eq!((read(path), read(&path.with_extension("1"))), ("x\n".to_owned(), String::new()));
    }
}
