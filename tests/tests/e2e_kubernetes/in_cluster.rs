//! As in a pod: the image, with the files of a service account.

use std::fs;

use lb_tests::cmd::wait_for;
use lb_tests::container::{Container, Image, Node};
use lb_tests::http::sequential;
use lb_tests::scenario::Setup;
use lb_tests::topology::Family;

use super::{Cluster, NAMESPACE, SOON, ready};

#[test]
fn a_pod_is_let_in_by_its_service_account() {
    let setup = Setup::Tc;
    let cluster = Cluster::start(setup);
    cluster.put(&ready("gateways-a", &[1, 2]));
    let account = cluster.access().service_account().unwrap();
    let image = Image::unpack(&cluster.topology.name).unwrap();
    let kubeconfig = format!(", kubeconfig: {}", cluster.kubeconfig.path().display());
    let config = cluster.config(setup).replace(&kubeconfig, "");
    assert!(!config.contains("kubeconfig"), "{config}");
    let node = Node::new(&cluster.topology, &config).unwrap();
    let mut container = node.start_in_cluster(&image, &account).unwrap();
    let wait_served = |container: &mut Container, names: &[&str]| {
        wait_for(&format!("{names:?} serve"), SOON, || {
            anyhow::ensure!(container.is_running()?, "it ended:\n{}", container.log());
            let outcome = sequential(&cluster.topology.client, Family::V4.vip(), 12)?;
            outcome.require(12)?;
            let served: Vec<&str> = outcome.served.keys().map(String::as_str).collect();
            anyhow::ensure!(served == names, "{served:?}");
            Ok(())
        })
        .unwrap();
    };
    wait_served(&mut container, &["b1", "b2"]);

    // kubelet has a new token for it, and the old one is not good any more.
    cluster.api.set_token("token-of-tomorrow");
    account.write(&cluster.api.access(NAMESPACE).unwrap()).unwrap();
    cluster.put(&ready("gateways-a", &[3]));
    wait_served(&mut container, &["b3"]);
    assert!(fs::read_dir(account.path()).is_ok());
    container.terminate().unwrap();
}
