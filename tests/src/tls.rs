//! A certificate authority of the test's own, and clients that trust nobody else.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Signs the gateways' certificates. Its own certificate is a file for as long as this lives.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    directory: PathBuf,
}

/// A server's certificate and key.
#[derive(Debug)]
pub struct Identity {
    /// PEM, one certificate.
    pub certificate: String,
    /// PEM, PKCS #8.
    pub key: String,
}

impl Authority {
    /// `name` is that of the topology, which also names the directory.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Headgate test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let directory = std::env::temp_dir().join(format!("{name}-tls"));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("ca.pem"), certificate.pem())?;
        Ok(Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), directory })
    }

    /// Its own certificate as a file, for `curl --cacert`.
    pub fn file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A new certificate for these host names and addresses.
    pub fn issue(&self, names: Vec<String>) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// For a client of ours: it trusts this authority and asks for HTTP/1.1.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Identity {
    /// Whether a PEM text begins with this certificate.
    pub fn is_first_of(&self, text: &str) -> Result<bool> {
        Ok(first_certificate(text)? == first_certificate(&self.certificate)?)
    }
}

/// The first certificate of a PEM text, without what stands around it, so that two of them can be compared.
fn first_certificate(text: &str) -> Result<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let (_, rest) = text.split_once(BEGIN).with_context(|| format!("no certificate in {text:?}"))?;
    let (base64, _) = rest.split_once("-----END").context("a certificate without an end")?;
    Ok(base64.split_whitespace().collect())
}
