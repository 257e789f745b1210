//! The requests of HTTP and gRPC probes.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, USER_AGENT,
};
use hyper::http::uri::{Authority, PathAndQuery, Scheme, Uri};
use hyper::{Method, Request, Version};

use super::{Failure, Target};

/// A request but for the host.
pub(super) struct Template {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    /// `None`: the target's address and port.
    pub(super) host: Option<String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) http2: bool,
    pub(super) scheme: Scheme,
}

impl Template {
    /// The host to ask for by name, if there is one.
    pub(super) fn host<'a>(&'a self, target: &'a Target) -> Option<&'a str> {
        target.host.as_deref().or(self.host.as_deref())
    }

    pub(super) fn request(&self, target: &Target) -> Result<Request<Full<Bytes>>, Failure> {
        let host = match self.host(target) {
            Some(host) => authority(host).map_err(|error| Failure::network(error.to_string()))?,
            None => of_address(target.address)?,
        };
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let uri = Uri::builder().path_and_query(self.path.clone());
        let uri = if self.http2 {
            *request.version_mut() = Version::HTTP_2;
            uri.scheme(self.scheme.clone()).authority(host)
        } else {
            let host = HeaderValue::from_str(host.as_str()).map_err(|_| no_host(host.as_str()))?;
            request.headers_mut().insert(HOST, host);
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            uri
        };
        *request.uri_mut() = uri.build().map_err(|error| Failure::network(format!("no request: {error}")))?;
        Ok(request)
    }
}

/// The headers of a probe, with a name for who asks.
pub(super) fn headers(pairs: &[(String, String)]) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let header: HeaderName = name.parse().with_context(|| format!("`{name}` is no header's name"))?;
        if [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&header) {
            bail!("the header `{name}` is made by the probe itself");
        }
        let value = HeaderValue::from_str(value).with_context(|| format!("value of the header `{name}`"))?;
        headers.append(header, value);
    }
    const WHO: HeaderValue = HeaderValue::from_static(concat!("Headgate/", env!("CARGO_PKG_VERSION")));
    headers.entry(USER_AGENT).or_insert(WHO);
    Ok(headers)
}

/// A host, with a port or not.
pub(super) fn authority(host: &str) -> Result<Authority> {
    match host.parse::<Authority>() {
        Ok(authority) if !host.contains('@') => Ok(authority),
        _ => bail!("`{host}` is no host"),
    }
}

/// The name or the address alone, without the brackets of IPv6.
pub(super) fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

fn of_address(address: SocketAddr) -> Result<Authority, Failure> {
    // Without the scope of a link-local address, which is of this node alone.
    let address = SocketAddr::new(address.ip(), address.port()).to_string();
    Authority::try_from(address.as_str()).map_err(|_| no_host(&address))
}

fn no_host(host: &str) -> Failure {
    Failure::network(format!("`{host}` is no host"))
}

#[cfg(test)]
mod tests {
    use super::{of_address, without_port};

    #[test]
    fn a_host_without_its_port() {
        for (host, name) in [
            ("gw.example", "gw.example"),
            ("gw.example:8443", "gw.example"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::", "2001:db8::"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn an_address_without_its_scope() {
        for (address, host) in [("192.0.2.1:80", "192.0.2.1:80"), ("[fe80::1%3]:80", "[fe80::1]:80")] {
            assert_eq!(of_address(address.parse().unwrap()).unwrap(), host);
        }
    }
}
