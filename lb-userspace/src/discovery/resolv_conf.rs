//! `/etc/resolv.conf` as in resolv.conf(5), re-read when it changes.
//!
//! Taken from it: `nameserver`, `search`, `domain`, and of `options` `ndots`, `timeout`, `attempts`, `rotate`, with
//! glibc's defaults and bounds. Other options are passed over. The domain of the host's own name is no search
//! domain here.

use std::fs::{self, Metadata};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::proto::rr::Name;

/// glibc's MAXNS: it asks no more servers than these.
const MAX_SERVERS: usize = 3;

/// What a query needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// In the order of the file; at least one.
    pub(super) servers: Vec<IpAddr>,
    /// Absolute names.
    pub(super) search: Vec<Name>,
    /// A name with at least this many dots is tried as it is before the search domains.
    pub(super) ndots: usize,
    /// For one server to answer one query.
    pub(super) timeout: Duration,
    /// How often the list of servers is gone through; at least 1.
    pub(super) attempts: usize,
    /// Begin at another server each time.
    pub(super) rotate: bool,
    /// Why the servers are not those of the file.
    pub(super) note: Option<String>,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            servers: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            note: None,
        }
    }
}

impl ResolvConf {
    /// The names to ask for, in order, where `host` is wanted (glibc's `res_search`).
    pub(super) fn candidates(&self, host: &str) -> Vec<Name> {
        let Ok(mut absolute) = Name::from_ascii(host) else { return Vec::new() };
        if absolute.is_fqdn() {
            return vec![absolute];
        }
        let relative = absolute.clone();
        absolute.set_fqdn(true);
        let searched = self.search.iter().filter_map(|domain| relative.clone().append_domain(domain).ok());
        let dots = host.bytes().filter(|byte| *byte == b'.').count();
        let mut names: Vec<Name> = searched.collect();
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, absolute);
        names
    }
}

/// Reads a text; lines that say nothing usable are passed over, with a warning each.
fn parse(text: &str) -> (ResolvConf, Vec<String>) {
    let mut conf = ResolvConf { servers: Vec::new(), ..ResolvConf::default() };
    let mut warnings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace();
        let Some(keyword) = words.next() else { continue };
        if let Err(problem) = conf.take(keyword, &mut words) {
            warnings.push(format!("line {}: `{}`: {problem}: ignored", index + 1, line.trim()));
        }
    }
    if conf.servers.is_empty() {
        conf.servers = ResolvConf::default().servers;
        conf.note = Some("it names no server, so 127.0.0.1 is asked".to_owned());
    }
    (conf, warnings)
}

impl ResolvConf {
    fn take<'t>(&mut self, keyword: &str, words: &mut impl Iterator<Item = &'t str>) -> Result<(), String> {
        match keyword {
            "nameserver" => {
                let word = words.next().ok_or("no address")?;
                let server: IpAddr = word.parse().map_err(|_| {
                    let zone = if word.contains('%') { " (a zone is not supported)" } else { "" };
                    format!("not an IP address{zone}")
                })?;
                if self.servers.len() == MAX_SERVERS {
                    return Err(format!("more than {MAX_SERVERS} servers"));
                }
                // An unspecified address means this host, as it does when a socket connects to it.
                let here = server.is_unspecified().then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
                self.servers.push(here.unwrap_or(server));
            }
            "search" | "domain" => {
                let limit = if keyword == "domain" { 1 } else { usize::MAX };
                let mut bad = Vec::new();
                // The last line of either kind holds.
                self.search.clear();
                for word in words.take(limit).filter(|word| *word != ".") {
                    match Name::from_ascii(word) {
                        Ok(mut name) => {
                            name.set_fqdn(true);
                            self.search.push(name);
                        }
                        Err(_) => bad.push(word),
                    }
                }
                if !bad.is_empty() {
                    return Err(format!("no domain name: {}", bad.join(", ")));
                }
            }
            "options" => {
                for word in words {
                    self.option(word)?;
                }
            }
            // Known and of no meaning for a stub that speaks DNS alone.
            "sortlist" | "lookup" | "family" => {}
            _ => return Err("unknown keyword".to_owned()),
        }
        Ok(())
    }

    fn option(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = word.split_once(':').unwrap_or((word, ""));
        let number = || value.parse::<u64>().map_err(|_| format!("{name} needs a number"));
        match name {
            "ndots" => self.ndots = number()?.min(15) as usize,
            "timeout" => self.timeout = Duration::from_secs(number()?.clamp(1, 30)),
            "attempts" => self.attempts = number()?.clamp(1, 5) as usize,
            "rotate" => self.rotate = true,
            _ => {}
        }
        Ok(())
    }
}

/// The file, as it was last read.
pub(super) struct ResolvConfFile {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<ResolvConf>)>>,
}

/// What differs between two versions of a file; `None`: there is none. A swapped link leads to another inode.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(metadata: &Metadata) -> (u64, u64, u64, i64, i64) {
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

impl ResolvConfFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::new(None) }
    }

    /// The contents now. What is wrong with them is logged once for each version of the file.
    pub(super) fn current(&self) -> Arc<ResolvConf> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fs::metadata(&self.path).ok().map(|metadata| stamp(&metadata));
        if let Some((then, conf)) = &*read
            && *then == now
        {
            return Arc::clone(conf);
        }
        let path = self.path.display();
        let (conf, warnings) = match fs::read(&self.path) {
            Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)),
            Err(error) => {
                let note = format!("it cannot be read ({error}), so 127.0.0.1 is asked");
                (ResolvConf { note: Some(note), ..ResolvConf::default() }, Vec::new())
            }
        };
        for warning in &warnings {
            log::warn!("{path}: {warning}");
        }
        if let Some(note) = &conf.note {
            log::warn!("{path}: {note}");
        }
        let servers: Vec<String> = conf.servers.iter().map(IpAddr::to_string).collect();
        log::info!("{path}: asking {}", servers.join(", "));
        let conf = Arc::new(conf);
        *read = Some((now, Arc::clone(&conf)));
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(conf: &ResolvConf, host: &str) -> Vec<String> {
        conf.candidates(host).iter().map(Name::to_ascii).collect()
    }

    #[test]
    fn a_file_of_kubernetes() {
        let (conf, warnings) = parse(
            "# of the kubelet\nsearch a.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5 \
             timeout:2 attempts:3 rotate edns0\n",
        );
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(conf.servers, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!((conf.ndots, conf.timeout, conf.attempts), (5, Duration::from_secs(2), 3));
        assert!(conf.rotate && conf.note.is_none());
        assert_eq!(
            names(&conf, "gateway.istio_system"),
            [
                "gateway.istio_system.a.svc.cluster.local.",
                "gateway.istio_system.svc.cluster.local.",
                "gateway.istio_system."
            ]
        );
        assert_eq!(names(&conf, "gateway."), ["gateway."]);
    }

    #[test]
    fn enough_dots_put_the_name_itself_first() {
        let (conf, _) = parse("nameserver ::1\ndomain example.\n");
        assert_eq!(names(&conf, "a.b"), ["a.b.", "a.b.example."]);
        assert_eq!(names(&conf, "a"), ["a.example.", "a."]);
        // Too long with the search domain: that name is left out.
        let long = [["x"; 125].join("."), "yy".to_owned()].join(".");
        assert_eq!(conf.candidates(&long).len(), 1);
    }

    #[test]
    fn what_is_malformed_is_passed_over_with_its_line() {
        let (conf, warnings) = parse(
            "nameserver one\nnameserver fe80::1%eth0\nnameserver\nnameservers 1.1.1.1\nsearch ok.example \
             bad..example\noptions ndots:many\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver \
             192.0.2.3\nnameserver 192.0.2.4\n",
        );
        assert_eq!(conf.servers.len(), 3);
        assert_eq!(conf.search, [Name::from_ascii("ok.example.").unwrap()]);
        let lines: Vec<&str> = warnings.iter().map(|warning| warning.split(": ").next().unwrap()).collect();
        assert_eq!(
            lines,
            ["line 1", "line 2", "line 3", "line 4", "line 5", "line 6", "line 10"],
            "{warnings:#?}"
        );
    }

    #[test]
    fn without_servers_it_is_this_host() {
        for text in ["", "# nothing\n", "\u{fffd}\u{0}\u{1}\n", "nameserver nowhere\n"] {
            let (conf, _) = parse(text);
            assert_eq!(conf.servers, ResolvConf::default().servers);
            assert!(conf.note.is_some());
        }
    }

    #[test]
    fn a_swapped_link_and_a_rewritten_file_are_noticed() {
        let dir = std::env::temp_dir().join(format!("headgate-resolv-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [one, two, link, next] = ["one", "two", "link", "next"].map(|name| dir.join(name));
        fs::write(&one, "nameserver 192.0.2.1\n").unwrap();
        fs::write(&two, "nameserver 192.0.2.2\n").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let file = ResolvConfFile::new(link.clone());
        assert_eq!(file.current().servers[0].to_string(), "192.0.2.1");
        std::os::unix::fs::symlink(&two, &next).unwrap();
        fs::rename(&next, &link).unwrap();
        assert_eq!(file.current().servers[0].to_string(), "192.0.2.2");
        fs::write(&two, "nameserver 192.0.2.33\n").unwrap();
        assert_eq!(file.current().servers[0].to_string(), "192.0.2.33");
        fs::remove_file(&two).unwrap();
        assert!(file.current().note.as_ref().unwrap().contains("cannot be read"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
