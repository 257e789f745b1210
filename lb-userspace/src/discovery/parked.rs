//! The last good answers of clusters that were taken out, should they or their names come back.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::SystemTime;

use super::saved::SavedCluster;

/// Clusters that are remembered; the one that was taken out first goes first.
const MAX_CLUSTERS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Parked {
    /// With their names, each once, the last that was taken out at the end.
    clusters: VecDeque<(String, SavedCluster)>,
}

impl Parked {
    /// Remembers the answers of a cluster, by host name; nothing if there are none.
    pub(super) fn park(&mut self, cluster: String, hosts: BTreeMap<String, Vec<IpAddr>>, at: SystemTime) {
        self.remove(&cluster);
        if hosts.values().all(Vec::is_empty) {
            return;
        }
        if self.clusters.len() == MAX_CLUSTERS {
            self.clusters.pop_front();
        }
        let at = humantime::format_rfc3339_millis(at);
        let origin = format!("the last known of cluster {cluster}, taken out at {at}");
        self.clusters.push_back((cluster, SavedCluster { origin, hosts }));
    }

    pub(super) fn get(&self, cluster: &str) -> Option<&SavedCluster> {
        self.clusters.iter().find(|(name, _)| name == cluster).map(|(_, answers)| answers)
    }

    pub(super) fn remove(&mut self, cluster: &str) {
        self.clusters.retain(|(name, _)| name != cluster);
    }

    /// The addresses of a host in the cluster that was taken out last, and where they are from.
    pub(super) fn find(&self, host: &str) -> Option<(Vec<IpAddr>, String)> {
        self.clusters.iter().rev().find_map(|(_, SavedCluster { origin, hosts })| {
            let addresses = hosts.get(host).filter(|addresses| !addresses.is_empty())?;
            Some((addresses.clone(), origin.clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(last: u8) -> BTreeMap<String, Vec<IpAddr>> {
        BTreeMap::from([("gw".to_owned(), vec![IpAddr::from([192, 0, 2, last])])])
    }

    #[test]
    fn the_last_answers_are_found_by_cluster_and_by_host() {
        let mut parked = Parked::default();
        for (cluster, last) in [("a", 1), ("b", 2), ("a", 3)] {
            parked.park(cluster.to_owned(), answers(last), SystemTime::UNIX_EPOCH);
        }
        assert_eq!(parked.get("a").unwrap().hosts, answers(3));
        let (addresses, origin) = parked.find("gw").unwrap();
        assert_eq!(addresses, answers(3)["gw"]);
        assert_eq!(origin, "the last known of cluster a, taken out at 1970-01-01T00:00:00.000Z");
        parked.remove("a");
        assert!(parked.get("a").is_none());
        assert_eq!(parked.find("gw").unwrap().0, answers(2)["gw"]);
        // What DNS says now counts, and that is nothing.
        parked.park("b".to_owned(), BTreeMap::from([("gw".to_owned(), Vec::new())]), SystemTime::UNIX_EPOCH);
        assert!(parked.find("gw").is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let mut parked = Parked::default();
        for number in 0..=MAX_CLUSTERS {
            parked.park(number.to_string(), answers(1), SystemTime::UNIX_EPOCH);
        }
        assert_eq!(parked.clusters.len(), MAX_CLUSTERS);
        assert!(parked.get("0").is_none() && parked.get("64").is_some());
    }
}
