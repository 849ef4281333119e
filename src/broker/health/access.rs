//! Access control of the endpoints. Pure: a decision from the headers of a request.
//!
//! The Host header must name this endpoint. A hostile page can let its own name resolve to this machine's address
//! (DNS rebinding) and then read the responses as its own; but the request carries the hostile name. An IP address is
//! accepted: probes may know only an address, and a rebound name never appears as one.

use crate::config::HealthServer;
use std::net::{Ipv4Addr, Ipv6Addr};
use subtle::ConstantTimeEq;

/// Paths without access control: probes have no token and learn only yes or no; the page's files are static, and the
/// page requests all data with the token.
const OPEN: [&str; 5] = ["/live", "/ready", "/", "/style.css", "/script.js"];

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has no Host header, or several.
    NoHost,
    /// Its Host is not allowed.
    ForeignHost,
    /// It has no token, or a wrong one.
    NoToken,
}

/// The access rules.
#[derive(Debug)]
pub(crate) struct Access {
    hosts: Vec<String>,
    token: Option<Vec<u8>>,
}

impl Access {
    /// From the configuration and the token of its file.
    pub(crate) fn new(config: &HealthServer, token: Option<Vec<u8>>) -> Access {
        let hosts = config.allowed_hosts.iter().chain([&config.host]).map(|host| host.to_ascii_lowercase()).collect();
        Access { hosts, token }
    }

    /// Whether a token is required.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Checks a request by its hosts, its `Authorization` header and its path.
    ///
    /// # Errors
    ///
    /// The reason of a refusal.
    pub(crate) fn check(&self, hosts: &[&str], authorization: Option<&[u8]>, path: &str) -> Result<(), Refusal> {
        if hosts.is_empty() {
            return Err(Refusal::NoHost);
        }
        if !hosts.iter().all(|host| self.is_ours(host)) {
            return Err(Refusal::ForeignHost);
        }
        let Some(token) = self.token.as_deref().filter(|_| !OPEN.contains(&path)) else { return Ok(()) };
        let given = authorization.and_then(bearer).unwrap_or_default();
        if token.ct_eq(given).into() { Ok(()) } else { Err(Refusal::NoToken) }
    }

    /// Whether a host, with or without a port, is an IP address or an allowed name.
    fn is_ours(&self, host: &str) -> bool {
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(rest) = host.strip_prefix('[') {
            let Some((address, port)) = rest.split_once(']') else { return false };
            return address.parse::<Ipv6Addr>().is_ok() && is_port(port.strip_prefix(':').unwrap_or(port));
        }
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        is_port(port) && (name.parse::<Ipv4Addr>().is_ok() || name == "localhost" || self.hosts.contains(&name))
    }
}

/// The token of `Bearer TOKEN`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>) -> Access {
        let hosts = vec!["Broker.example".to_owned(), "127.0.0.1".to_owned()];
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Access { hosts, token: token.map(|token| token.as_bytes().to_vec()) }
    }

    #[test]
    fn addresses_and_our_names_pass_and_no_others() {
        let access = access(None);
        for host in [
            "127.0.0.1",
            "127.0.0.1:9090",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:9090",
            "[fe80::1]:1",
            "localhost",
            "LocalHost:9090",
            "localhost.",
            "broker.example",
            "BROKER.example:9090",
        ] {
            assert_eq!(access.check(&[host], None, "/health"), Ok(()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example:9090",
            "[::1",
            "[::1].evil.example",
            "[localhost]",
            "localhost:9090:evil",
            "localhost:evil",
            "sub.broker.example",
            "127.1",
        ] {
            assert_eq!(access.check(&[host], None, "/live"), Err(Refusal::ForeignHost), "{host}");
        }
        assert_eq!(access.check(&[], None, "/live"), Err(Refusal::NoHost));
        assert_eq!(access.check(&["localhost", "evil.example"], None, "/live"), Err(Refusal::ForeignHost));
    }

    #[test]
    fn the_token_is_asked_for_everywhere_but_by_probes() {
        let access = access(Some("0123456789"));
        let check = |authorization: Option<&str>, path| {
            access.check(&["localhost"], authorization.map(str::as_bytes), path).is_ok()
        };
        for path in OPEN {
            assert!(check(None, path) && check(Some("Bearer wrong"), path), "{path}");
        }
        for path in ["/health", "/metrics", "/api/status", "/events", "/nothing", "/live/", "/ready/x", "//"] {
            assert!(check(Some("Bearer 0123456789"), path) && check(Some("bearer 0123456789"), path), "{path}");
            for wrong in [
                "",
                "Bearer",
                "Bearer ",
                "Bearer 012345678",
                "Bearer 01234567890",
                "Bearer 01234567890123456789",
                "Bearer 1123456789",
                "Basic 0123456789",
                "0123456789",
            ] {
                assert!(!check(Some(wrong), path), "{path} {wrong:?}");
            }
            assert!(!check(None, path), "{path}");
        }
    }
}
