mod envoy;
mod refused;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::{Close, Flags, Format, Kind, Record, Rung};

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A connection that went well.
pub(super) fn record() -> Record {
    Record {
        kind: Kind::End,
        id: 7,
        start: UNIX_EPOCH + Duration::from_nanos(1_796_042_829_434_639_000),
        duration: Duration::from_micros(51_900),
        connect: Some(Duration::from_micros(704)),
        bytes_in: 5,
        bytes_out: 10,
        client: address("127.0.0.1:33366"),
        local: address("127.0.0.1:28300"),
        upstream_local: Some(address("127.0.0.1:52420")),
        upstream: Some(address("127.0.0.1:28301")),
        earlier: Vec::new(),
        listener: "http".into(),
        cluster: Some("c".into()),
        flags: Flags::NONE,
        attempts: 1,
        termination: None,
        failure: None,
        local_close: None,
        backend_last: false,
        downstream_close: Close::Normal,
        upstream_close: Close::Normal,
        rung: Rung::Xdp,
    }
}

fn rendered(format: &Format, record: &Record) -> String {
    let mut out = b"before ".to_vec();
    format.render(record, &mut out);
    String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned()
}

fn text(format: &str, record: &Record) -> String {
    rendered(&Format::text(format).unwrap(), record)
}

/// A new directory, removed when dropped.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("headgate-access-log-{:032x}", fastrand::u128(..)));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Far more than a test needs.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

struct Warnings(Mutex<Vec<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Has warnings kept for [`warnings_about`].
pub(super) fn keep_warnings() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&WARNINGS).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
}

pub(super) fn warnings_about(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    WARNINGS.0.lock().unwrap().iter().filter(|warning| warning.contains(&path)).cloned().collect()
}
