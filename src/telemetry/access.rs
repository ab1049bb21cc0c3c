//! Who may ask for what changes or reveals something: holders of the token, or everybody on this machine where there is none.
//!
//! A page in somebody's browser is on this machine, too, and its server can have its own name lead here (DNS rebinding). So where
//! nothing but the place decides, a request must also name this machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::config::HttpConfig;

/// The rule of one port.
#[derive(Clone)]
pub enum Access {
    /// No token, and only this machine can ask.
    Open,
    /// No token, and others can ask.
    Closed,
    /// The token's digest, so that comparing takes as long whatever is sent, and memory holds no secret.
    Token([u8; 32]),
}

impl Access {
    pub fn of(http: &HttpConfig, address: SocketAddr) -> Self {
        match &http.token {
            Some(token) => Access::Token(Sha256::digest(token.reveal()).into()),
            None if address.ip().is_loopback() => Access::Open,
            None => Access::Closed,
        }
    }

    /// # Errors
    /// With the answer to whoever may not ask.
    #[allow(clippy::result_large_err, reason = "made once a refused request")]
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Response> {
        match self {
            Access::Open => Ok(()),
            Access::Closed => {
                let problem = "closed: http.listen is no loopback address and http.token is not set\n";
                Err((StatusCode::FORBIDDEN, problem).into_response())
            }
            Access::Token(expected) if bearer(headers).is_some_and(|token| is_equal(token, expected)) => Ok(()),
            Access::Token(_) => {
                let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
                let problem = "expected the header `Authorization: Bearer …` with the http.token of this daemon\n";
                Err((StatusCode::UNAUTHORIZED, challenge, problem).into_response())
            }
        }
    }

    /// Before everything but what probes ask for: where nobody needs a token, requests must name this machine.
    pub async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
        match access.check_host(&request) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal,
        }
    }

    #[allow(clippy::result_large_err, reason = "made once a refused request")]
    fn check_host(&self, request: &Request) -> Result<(), Response> {
        if !matches!(self, Access::Open) {
            return Ok(());
        }
        let in_headers = request.headers().get_all(header::HOST).iter().map(|host| host.as_bytes());
        let in_target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let mut hosts = in_headers.chain(in_target).map(String::from_utf8_lossy).peekable();
        let problem = match hosts.peek() {
            None => "the request has no Host".to_owned(),
            Some(_) => match hosts.find(|host| !is_this_machine(host)) {
                None => return Ok(()),
                Some(host) => format!("Host is `{}`", host.escape_debug()),
            },
        };
        let expected =
            "expected localhost, 127.0.0.1 or [::1], with any port; other names are taken where http.token is set";
        Err((StatusCode::MISDIRECTED_REQUEST, format!("{problem}: {expected}\n")).into_response())
    }
}

/// Whether a Host, with or without a port, is a name that leads nowhere but here, whatever a server of names says.
fn is_this_machine(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
        || bracketed.and_then(|address| address.parse().ok()).is_some_and(|address: Ipv6Addr| address.is_loopback())
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// In a time that says nothing about where the two differ.
fn is_equal(token: &[u8], expected: &[u8; 32]) -> bool {
    let digest = Sha256::digest(token);
    std::hint::black_box(digest.iter().zip(expected).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn access(toml: &str, address: &str) -> Access {
        let config = Config::from_toml(toml, []).expect("a configuration");
        Access::of(&config.http, address.parse().expect("an address"))
    }

    fn status(access: &Access, authorization: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
        }
        access.check(&headers).map_or_else(|answer| answer.status().as_u16(), |()| 200)
    }

    #[test]
    fn without_a_token_only_this_machine_may_ask() {
        for (address, expected) in [
            ("127.0.0.1:1", 200),
            ("127.9.9.9:1", 200),
            ("[::1]:1", 200),
            ("0.0.0.0:1", 403),
            ("[::]:1", 403),
            ("10.0.0.1:1", 403),
        ] {
            assert_eq!(status(&access("", address), None), expected, "{address}");
            assert_eq!(status(&access("", address), Some("Bearer guess")), expected, "{address}");
        }
    }

    #[test]
    fn where_the_place_decides_a_request_names_this_machine() {
        let asked = |access: &Access, target: &str, hosts: &[&str]| {
            let mut request = axum::http::Request::get(target);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            let request = request.body(axum::body::Body::empty()).expect("a request");
            access.check_host(&request).map_or_else(|answer| answer.status().as_u16(), |()| 200)
        };
        let open = access("", "127.0.0.1:1");
        for host in [
            "localhost",
            "localhost:9464",
            "LocalHost:1",
            "127.0.0.1",
            "127.0.0.1:9464",
            "127.9.9.9:80",
            "[::1]",
            "[::1]:9464",
            "[0:0::1]:9464",
            "localhost:",
        ] {
            assert_eq!(asked(&open, "/status", &[host]), 200, "{host}");
        }
        let elsewhere = [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9464",
            "evil.example:127.0.0.1",
            "localhost@evil.example",
            "evil@localhost",
            "localhost.",
            "localhost:9464:9464",
            "localhost:evil",
            "0.0.0.0",
            "128.0.0.1",
            "127.1",
            "2130706433",
            "0177.0.0.1",
            "[::]",
            "[::2]:9464",
            "::1",
            "[::1",
            "::1]",
            "",
            " ",
            ":",
            ":9464",
            "\u{FF}",
        ];
        for host in elsewhere {
            assert_eq!(asked(&open, "/status", &[host]), 421, "{host}");
        }
        assert_eq!(asked(&open, "/status", &[]), 421, "no browser leaves it out, and what is not said is not known");
        assert_eq!(asked(&open, "/status", &["localhost", "evil.example"]), 421);
        assert_eq!(asked(&open, "http://evil.example/status", &["localhost"]), 421, "the target counts before Host");
        assert_eq!(asked(&open, "http://localhost:9464/status", &["localhost"]), 200);
        // Where a token or nobody may ask, names say nothing.
        for access in [access("http.token = \"correct-horse-battery\"", "127.0.0.1:1"), access("", "0.0.0.0:1")] {
            assert_eq!(asked(&access, "/status", &["evil.example"]), 200);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_name_that_can_be_bought_is_this_machine(name in "([a-z0-9-]{1,12}\\.){1,4}[a-z]{2,8}(:[0-9]{1,5})?") {
            proptest::prop_assert!(!is_this_machine(&name));
        }

        #[test]
        fn every_loopback_address_is_this_machine(rest: [u8; 3], port: u16) {
            let [b, c, d] = rest;
            let host = format!("127.{b}.{c}.{d}:{port}");
            proptest::prop_assert!(is_this_machine(&host));
        }
    }

    #[test]
    fn with_a_token_everybody_must_name_it() {
        let toml = "http.token = \"correct-horse-battery\"";
        for address in ["127.0.0.1:1", "0.0.0.0:1"] {
            let access = access(toml, address);
            for (authorization, expected) in [
                (Some("Bearer correct-horse-battery"), 200),
                (Some("bearer correct-horse-battery"), 200),
                (None, 401),
                (Some("Bearer correct-horse-batterz"), 401),
                (Some("Bearer correct-horse-battery2"), 401),
                (Some("Bearer correct-horse-batter"), 401),
                (Some("Bearer "), 401),
                (Some("Bearer"), 401),
                (Some("Basic correct-horse-battery"), 401),
                (Some("correct-horse-battery"), 401),
            ] {
                assert_eq!(status(&access, authorization), expected, "{authorization:?}");
            }
        }
    }
}
