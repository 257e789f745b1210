//! The last good answers on disk, for a start at which nobody answers.
//!
//! JSON files of version 1: of DNS `discovery.json`, `{version, saved_at, clusters: {NAME: {HOST: [IP, …]}}}`; of other
//! sources `endpoints.json`, see [`feed`](super::feed). Each is replaced as a whole, by renaming a synced temporary file of
//! the same directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const DNS_FILE: &str = "discovery.json";
const VERSION: u32 = 1;

/// A larger file is none of ours.
const MAX_SIZE: u64 = 64 << 20;

/// The last good answers for one cluster, of an earlier run or remembered since it was taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SavedCluster {
    /// For people: where they are from, and of when.
    pub(super) origin: String,
    pub(super) hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// Cluster and host names to addresses.
pub(super) type Answers = BTreeMap<String, BTreeMap<String, Vec<IpAddr>>>;

#[derive(Serialize, Deserialize)]
struct Contents<T> {
    version: u32,
    saved_at: String,
    clusters: T,
}

/// Reads the DNS answers that an earlier run left in `dir`.
pub(super) fn load_dns(dir: &Path) -> BTreeMap<String, SavedCluster> {
    let Some((answers, origin)) = load::<Answers>(dir, DNS_FILE) else { return BTreeMap::new() };
    let cluster = |hosts| SavedCluster { origin: origin.clone(), hosts };
    answers.into_iter().map(|(name, hosts)| (name, cluster(hosts))).collect()
}

/// Reads what an earlier run left in a file, and tells where it is from, for people; a file that cannot be used is worth a
/// warning and no more.
pub(super) fn load<T: DeserializeOwned>(dir: &Path, file: &str) -> Option<(T, String)> {
    let path = dir.join(file);
    match read::<T>(&path) {
        Ok(contents) => contents.map(|Contents { saved_at, clusters, .. }| {
            (clusters, format!("from {}, saved at {saved_at}", path.display()))
        }),
        Err(error) => {
            log::warn!("{}: {error}: ignored, and replaced with the next answer", path.display());
            None
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<Contents<T>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut text)?;
    let contents: Contents<T> = serde_json::from_slice(&text)?;
    if contents.version != VERSION {
        return Err(io::Error::other(format!("version {}, not {VERSION}", contents.version)));
    }
    if humantime::parse_rfc3339(&contents.saved_at).is_err() {
        return Err(io::Error::other("`saved_at` is no time"));
    }
    Ok(Some(contents))
}

fn write<T: Serialize>(dir: &Path, file: &str, clusters: &T, now: SystemTime) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let saved_at = humantime::format_rfc3339_millis(now).to_string();
    let contents = Contents { version: VERSION, saved_at, clusters };
    let path = dir.join(file);
    let temporary = dir.join(format!("{file}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(&contents)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The rename itself.
    File::open(dir)?.sync_all()
}

/// Writes in the background, the newest contents only.
pub(super) struct Saver<T> {
    newest: watch::Sender<T>,
}

impl Saver<Answers> {
    /// Of DNS answers. Needs a tokio runtime.
    pub(super) fn of_dns(dir: PathBuf) -> Self {
        Self::start(dir, DNS_FILE)
    }
}

impl<T: Serialize + Clone + Default + Send + Sync + 'static> Saver<T> {
    /// Into a file of `dir`. Needs a tokio runtime.
    pub(super) fn start(dir: PathBuf, file: &'static str) -> Self {
        let (newest, mut contents) = watch::channel(T::default());
        tokio::spawn(async move {
            let mut warned = false;
            while contents.changed().await.is_ok() {
                let clusters = contents.borrow_and_update().clone();
                let into = dir.clone();
                let written =
                    tokio::task::spawn_blocking(move || write(&into, file, &clusters, SystemTime::now()))
                        .await;
                match written {
                    Ok(Ok(())) => warned = false,
                    Ok(Err(error)) if !warned => {
                        log::warn!(
                            "{}: the last good endpoints cannot be saved: {error}; make it writable, or name another \
                             with --state-dir",
                            dir.display()
                        );
                        warned = true;
                    }
                    // Told already; or the runtime is ending.
                    Ok(Err(_)) | Err(_) => {}
                }
            }
        });
        Self { newest }
    }

    pub(super) fn save(&self, clusters: T) {
        self.newest.send_replace(clusters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("headgate-saved-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = scratch("round");
        assert!(load_dns(&dir).is_empty());
        let hosts = BTreeMap::from([("gateway".to_owned(), vec!["192.0.2.1".parse().unwrap()])]);
        let answers = Answers::from([("c".to_owned(), hosts.clone())]);
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500);
        write(&dir, DNS_FILE, &answers, now).unwrap();
        write(&dir, DNS_FILE, &answers, now).unwrap();
        let loaded = load_dns(&dir);
        assert_eq!(loaded["c"].hosts, hosts);
        assert!(loaded["c"].origin.ends_with("discovery.json, saved at 1970-01-01T00:00:01.500Z"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn files_that_are_not_ours_are_ignored() {
        let dir = scratch("foreign");
        fs::create_dir_all(&dir).unwrap();
        let future = r#"{"version": 2, "saved_at": "2026-01-01T00:00:00.000Z", "clusters": {}}"#;
        let no_time = r#"{"version": 1, "saved_at": "yesterday", "clusters": {"c": {"h": ["192.0.2.1"]}}}"#;
        let no_address =
            r#"{"version": 1, "saved_at": "2026-01-01T00:00:00Z", "clusters": {"c": {"h": ["x"]}}}"#;
        for text in ["", "[]", "{\"version\": 1", future, no_time, no_address, "\u{0}\u{1}"] {
            fs::write(dir.join(DNS_FILE), text).unwrap();
            assert!(load_dns(&dir).is_empty(), "{text}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
