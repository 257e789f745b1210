//! TLS of probes.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore,
    SignatureScheme,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Failure;
use super::request::without_port;
use super::stream::{Meter, Stream};
use crate::model::ProbeTls;

/// How the connections of a probe are encrypted.
pub(super) struct Tls {
    connector: TlsConnector,
    /// Instead of the host.
    sni: Option<ServerName<'static>>,
}

impl Tls {
    /// `protocol` is what it asks for by ALPN.
    pub(super) fn new(tls: &ProbeTls, protocol: &str) -> Result<Self> {
        let ProbeTls { ca, sni, insecure } = tls;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("setting up TLS")?;
        let builder = if *insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        } else {
            builder.with_root_certificates(match ca {
                Some(path) => of_file(path)?,
                None => of_system()?,
            })
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        // Each probe looks at the certificate.
        config.resumption = Resumption::disabled();
        let sni = sni.as_deref().map(name).transpose()?;
        Ok(Self { connector: Arc::new(config).into(), sni })
    }

    /// Asks for the host's name, or, if it is none, for the address.
    pub(super) async fn connect(
        &self,
        host: Option<&str>,
        address: SocketAddr,
        stream: Stream,
        meter: &Meter,
    ) -> Result<TlsStream<Stream>, Failure> {
        let of_host = || host.and_then(|host| name(without_port(host)).ok());
        let name = self.sni.clone().or_else(of_host).unwrap_or_else(|| address.ip().into());
        self.connector.connect(name, stream).await.map_err(|error| {
            let seen = meter.seen();
            if seen.plain_http() {
                Failure::network("the answer is HTTP without TLS")
            } else {
                Failure::io(&error)
            }
        })
    }
}

fn name(name: &str) -> Result<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).with_context(|| format!("`{name}` is no server name"))
}

fn of_file(path: &Path) -> Result<RootCertStore> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading certificates from {}", path.display()))?;
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate).with_context(|| format!("a certificate of {}", path.display()))?;
    }
    if store.is_empty() {
        bail!("{} has no certificate in PEM", path.display());
    }
    Ok(store)
}

/// Certificates of the system's store that cannot be read are left out, as other programs do.
fn of_system() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        match found.errors.first() {
            Some(error) => bail!("the system's certificates: {error}"),
            None => bail!("the system has no certificates of authorities"),
        }
    }
    Ok(store)
}

/// Takes every certificate, though not a handshake that its key has not signed.
struct AcceptAny(Arc<CryptoProvider>);

impl fmt::Debug for AcceptAny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AcceptAny")
    }
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What is wrong with the endpoint's TLS.
pub(super) fn reason(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            // The second of an authority that has but the name of a trusted one.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the certificate is not trusted".into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet".into()
            }
            CertificateError::NotValidForNameContext { expected, .. } => {
                format!("the certificate is not for {}", expected.to_str())
            }
            error => format!("the certificate is not valid: {error}"),
        },
        rustls::Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge) => {
            "the TLS handshake is too long".into()
        }
        rustls::Error::InvalidMessage(_) => "the answer is not TLS".into(),
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | rustls::Error::NoApplicationProtocol => "the endpoint does not speak the protocol (ALPN)".into(),
        rustls::Error::AlertReceived(alert) => format!("TLS alert {alert:?}"),
        error => format!("TLS: {error}"),
    }
}
