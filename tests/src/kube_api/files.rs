//! How clients learn of the server: a kubeconfig file, or the files that a pod has of its service account.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

/// Where a client finds the server, and what they know each other by. A test may change it before it writes it.
#[derive(Clone, Debug)]
pub struct Access {
    pub address: SocketAddr,
    /// The certificate of the server's authority, PEM.
    pub authority: String,
    pub token: String,
    /// The client's own: what kubectl reads without `--namespace`, and where a pod runs.
    pub namespace: String,
}

/// A kubeconfig file in a directory of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct Kubeconfig {
    directory: TempDir,
}

/// What a pod finds in [`ServiceAccount::MOUNT`], in a directory of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct ServiceAccount {
    directory: TempDir,
    address: SocketAddr,
}

impl Access {
    pub fn kubeconfig(&self) -> Result<Kubeconfig> {
        let kubeconfig = Kubeconfig { directory: TempDir::with_prefix("hgt-kubeconfig-")? };
        kubeconfig.write(self)?;
        Ok(kubeconfig)
    }

    pub fn service_account(&self) -> Result<ServiceAccount> {
        let directory = TempDir::with_prefix("hgt-serviceaccount-")?;
        let account = ServiceAccount { directory, address: self.address };
        account.write(self)?;
        for name in ["ca.crt", "namespace", "token"] {
            symlink(Path::new("..data").join(name), account.path().join(name))?;
        }
        Ok(account)
    }
}

impl Kubeconfig {
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("config")
    }

    /// At once, as a tool that renews tokens does.
    pub fn write(&self, access: &Access) -> Result<()> {
        let Access { address, authority, token, namespace } = access;
        let authority = STANDARD.encode(authority);
        let text = format!(
            "\
apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: https://{address}
    certificate-authority-data: {authority}
users:
- name: headgate
  user:
    token: {token}
contexts:
- name: test
  context:
    cluster: test
    user: headgate
    namespace: {namespace}
"
        );
        let next = self.directory.path().join("next");
        fs::write(&next, text)?;
        Ok(fs::rename(&next, self.path())?)
    }
}

impl ServiceAccount {
    /// Where pods have it.
    pub const MOUNT: &'static str = "/var/run/secrets/kubernetes.io/serviceaccount";

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What the kubelet tells every container of the server.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("KUBERNETES_SERVICE_HOST", self.address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", self.address.port().to_string()),
        ]
    }

    /// As the kubelet does it: the files are links through `..data`, a link to a directory that is never changed; new
    /// contents are a new directory, and `..data` is turned to it at once.
    pub fn write(&self, access: &Access) -> Result<()> {
        let directory = TempDir::with_prefix_in("..", self.path())?.keep();
        fs::write(directory.join("ca.crt"), &access.authority)?;
        fs::write(directory.join("namespace"), &access.namespace)?;
        fs::write(directory.join("token"), &access.token)?;
        let data = self.path().join("..data");
        let before = fs::read_link(&data).ok();
        let next = self.path().join("..data_tmp");
        symlink(directory.file_name().expect("it has a name"), &next)?;
        fs::rename(&next, &data)?;
        if let Some(before) = before {
            fs::remove_dir_all(self.path().join(before))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Access;

    #[test]
    fn a_service_account_is_renewed_as_the_kubelet_does() {
        let mut access = Access {
            address: "[fd00::1]:6443".parse().unwrap(),
            authority: "-----BEGIN CERTIFICATE-----\n".into(),
            token: "first".into(),
            namespace: "headgate-system".into(),
        };
        let account = access.service_account().unwrap();
        let read = |name| fs::read_to_string(account.path().join(name)).unwrap();
        assert_eq!((read("token"), read("namespace")), ("first".into(), "headgate-system".into()));
        access.token = "second".into();
        account.write(&access).unwrap();
        assert_eq!((read("token"), read("ca.crt")), ("second".into(), access.authority.clone()));
        // Three links, `..data` and the one directory behind it.
        assert_eq!(fs::read_dir(account.path()).unwrap().count(), 5);
        assert_eq!(account.environment()[0].1, "fd00::1");
        let path = account.path().to_owned();
        drop(account);
        assert!(!path.exists());
    }
}
