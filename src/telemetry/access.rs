//! Who may ask for what changes or reveals something: holders of the token, or everybody on this machine where there is none.

use std::net::SocketAddr;

use axum::http::{HeaderMap, StatusCode, header};
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
