//! What operators are told: why something cannot be reached, and traces of what the daemon does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

/// A TLS server with a certificate that nobody has signed but itself, by OpenSSL's own program.
struct UntrustedServer {
    child: Child,
    address: String,
}

impl UntrustedServer {
    /// `None` where the program is not installed.
    fn start(folder: &std::path::Path) -> Option<Self> {
        let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"]);
        let made = make.arg(&key).arg("-out").arg(&certificate).stderr(Stdio::null()).status().ok()?;
        assert!(made.success(), "openssl req");
        let mut serve = Command::new("openssl");
        serve.args(["s_server", "-accept", "127.0.0.1:0", "-key"]).arg(&key).arg("-cert").arg(&certificate);
        let mut child = serve.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let lines = BufReader::new(child.stdout.as_mut()?).lines().map_while(Result::ok);
        let address = lines.filter_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned)).next()?;
        Some(UntrustedServer { child, address })
    }
}

impl Drop for UntrustedServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn check_says_that_a_certificate_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = UntrustedServer::start(folder.path()) else {
        println!("openssl is not installed: no TLS server to refuse");
        return;
    };
    let model = folder.path().join("model.wnw");
    std::fs::write(&model, model_bytes()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_winnowd"))
        .args(["check", "--connect", "--config", "/dev/null"])
        .current_dir(&folder)
        .env("WINNOWD_MODEL__PATH", &model)
        .env("WINNOWD_KAFKA__BOOTSTRAP", &server.address)
        .env("WINNOWD_KAFKA__SECURITY_PROTOCOL", "ssl")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    let of_kafka = said.lines().find(|line| line.contains("kafka      FAILED")).unwrap_or_default();
    assert!(of_kafka.contains("certificate verify failed"), "{said}");
    assert!(of_kafka.contains(&server.address) && !of_kafka.contains("[thrd:"), "{said}");
}
