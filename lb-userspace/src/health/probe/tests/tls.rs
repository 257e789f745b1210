use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::model::ProbeTls;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A directory of the test's own.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("headgate-probe-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate for `name`, that expired long ago or is good.
async fn server(authority: &Authority, name: &str, expired: bool, protocols: &[&str]) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if expired {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    }
    let certificate = params.signed_by(&key, authority).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                // Settings, and a head with status 200 that ends the stream.
                let answer = b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x88";
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer).await;
                drain(&mut stream).await;
                return;
            }
            let answer = match stream.get_ref().1.server_name() {
                Some(name) => format!("HTTP/1.1 200 OK\r\n\r\nasked for {name}."),
                None => "HTTP/1.1 200 OK\r\n\r\nasked for none.".to_owned(),
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

fn https(tls: ProbeTls, host: Option<&str>, receive: &str) -> Probe {
    let receive = if receive.is_empty() { Vec::new() } else { vec![receive.into()] };
    Probe::Http(HttpProbe { tls: Some(tls), host: host.map(str::to_owned), receive, ..http_probe() })
}

#[tokio::test]
async fn certificates() {
    let directory = Directory::new("certificates");
    let (ours, theirs) = (authority(), authority());
    let ca = Some(directory.file("ca.pem", &ours.pem()));
    let trusting = ProbeTls { ca, ..Default::default() };
    let named = https(trusting.clone(), Some("gw.example:8443"), "asked for gw.example.");
    let good = server(&ours, "gw.example", false, &["http/1.1"]).await;
    assert_eq!(ask(&named, good).await, Ok(()));

    let network = |reason: &str| (FailureKind::Network, reason.to_owned(), false);
    let other = server(&theirs, "gw.example", false, &[]).await;
    assert_eq!(failure(&named, other).await, network("the certificate is not trusted"));
    let expired = server(&ours, "gw.example", true, &[]).await;
    assert_eq!(failure(&named, expired).await, network("the certificate has expired"));
    let elsewhere = server(&ours, "other.example", false, &[]).await;
    assert_eq!(failure(&named, elsewhere).await, network("the certificate is not for gw.example"));

    let sni = ProbeTls { sni: Some("other.example".into()), ..trusting.clone() };
    assert_eq!(ask(&https(sni, Some("gw.example"), "asked for other.example."), elsewhere).await, Ok(()));
    let addressed = https(trusting.clone(), None, "asked for none.");
    assert_eq!(ask(&addressed, server(&ours, "127.0.0.1", false, &[]).await).await, Ok(()));
    assert_eq!(failure(&addressed, good).await, network("the certificate is not for 127.0.0.1"));
    let target = Target { host: Some("gw.example".into()), ..target(good) };
    let prober = Prober::new(&https(trusting, Some("other.example"), "gw.example")).unwrap();
    assert_eq!(prober.ask(&target, LONG).await, Ok(()));

    let insecure = ProbeTls { insecure: true, ..Default::default() };
    for address in [good, other, expired, elsewhere] {
        assert_eq!(ask(&https(insecure.clone(), Some("gw.example"), "asked"), address).await, Ok(()));
    }
}

#[tokio::test]
async fn protocols() {
    let ours = authority();
    let insecure = ProbeTls { insecure: true, ..Default::default() };
    let only_http2 = server(&ours, "gw.example", false, &["h2"]).await;
    let no_protocol = "the endpoint does not speak the protocol (ALPN)";
    assert_eq!(reason(&https(insecure.clone(), None, ""), only_http2).await, no_protocol);
    let http2 = Probe::Http(HttpProbe { tls: Some(insecure), ..http2_probe() });
    assert_eq!(ask(&http2, only_http2).await, Ok(()));
    assert_eq!(reason(&http2, server(&ours, "gw.example", false, &["http/1.1"]).await).await, no_protocol);
}

#[tokio::test]
async fn no_tls() {
    let probe = https(ProbeTls { insecure: true, ..Default::default() }, None, "");
    let plain = answer_and_close("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(reason(&probe, plain).await, "the answer is HTTP without TLS");
    let garbage = answer("SSH-2.0-OpenSSH_9.6\r\n").await;
    assert_eq!(reason(&probe, garbage).await, "the answer is not TLS");
    let alert = answer_and_close([21, 3, 3, 0, 2, 2, 40]).await;
    assert_eq!(reason(&probe, alert).await, "TLS alert HandshakeFailure");
    assert_eq!(reason(&probe, answer_and_close("").await).await, "closed before the end of the answer");
    // Handshake records that never come to an end.
    let (address, _) =
        flood("", [&[22, 3, 3, 0x3f, 0xff, 11, 0xff, 0xff, 0xff][..], &[0; 0x3ffb]].concat()).await;
    assert_eq!(reason(&probe, address).await, "the TLS handshake is too long");
    closes_when_dropped(probe).await;
}

#[tokio::test]
async fn tls_where_none_is_expected() {
    let address = server(&authority(), "gw.example", false, &[]).await;
    for probe in [http_probe(), http2_probe()] {
        let reason = reason(&Probe::Http(probe), address).await;
        assert_eq!(reason, "the answer is TLS");
    }
}

#[test]
fn authorities() {
    let directory = Directory::new("authorities");
    let error = |ca: PathBuf| {
        let probe = https(ProbeTls { ca: Some(ca), ..Default::default() }, None, "");
        format!("{:#}", Prober::new(&probe).err().unwrap())
    };
    for ca in [
        directory.0.join("missing.pem"),
        directory.file("empty.pem", ""),
        directory.file("text.pem", "no certificate"),
        directory.file("base64.pem", "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n"),
        directory.file("der.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let error = error(ca.clone());
        println!("{error}");
        assert!(error.contains(ca.to_str().unwrap()), "{error}");
    }
    let sni = ProbeTls { sni: Some("a b".into()), insecure: true, ..Default::default() };
    let error = Prober::new(&https(sni, None, "")).err().unwrap();
    assert!(format!("{error:#}").starts_with("`a b` is no server name"), "{error:#}");
}
