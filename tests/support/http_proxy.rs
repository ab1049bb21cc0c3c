//! An HTTP/1.1 proxy in front of an object store that fails on demand.
//!
//! It passes bytes on unchanged, the header `Host` among them, which clients sign: a store verifies what it receives.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::listener::{Listener, address_of, end};

/// Of a connection that nothing happens on, and of a slow answer.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_HEAD_BYTES: u64 = 64 << 10;
const MAX_BODY_BYTES: u64 = 64 << 20;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The store never sees it; the answer has this status.
    Status(u16),
    /// The answer comes in pieces: a wait, its first half, another wait, the rest.
    Slow(Duration),
    /// The store answers; half of that arrives, then the connection ends.
    Truncated,
    /// The connection ends before the store has seen anything.
    CutBefore,
    /// The store gets half of the request, then both connections end.
    CutWithin,
    /// The store has done what was asked, but the connection ends without an answer.
    LostAnswer,
}

/// Which requests are disturbed, and how many of them.
#[derive(Debug, Clone)]
struct Rule {
    /// `""`: any.
    method: &'static str,
    /// A part of path and query.
    path: &'static str,
    left: usize,
    fault: Fault,
}

pub struct HttpProxy {
    listener: Listener,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    injected: AtomicUsize,
    /// Method and path of every request.
    requests: Mutex<Vec<String>>,
    /// With `rules`: slow answers need not be waited for once they are healed.
    healed: Condvar,
}

impl HttpProxy {
    /// In front of `http://HOST:PORT`.
    pub fn start(upstream: &str) -> Self {
        let shared = Arc::new(Shared {
            upstream: address_of(upstream),
            rules: Mutex::default(),
            injected: AtomicUsize::new(0),
            requests: Mutex::default(),
            healed: Condvar::new(),
        });
        let of_listener = shared.clone();
        let listener = Listener::start(move |client| {
            // The client sees whatever goes wrong here as a connection that ends.
            let _ = of_listener.serve(&client);
            end(&client);
        });
        HttpProxy { listener, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address())
    }

    /// Disturbs the next `n` requests of this method (`""`: any) with this in path or query.
    pub fn inject(&self, fault: Fault, method: &'static str, path: &'static str, n: usize) {
        self.shared.rules.lock().expect("rules").push(Rule { method, path, left: n, fault });
    }

    /// Disturbs nothing any more.
    pub fn heal(&self) {
        self.shared.rules.lock().expect("rules").clear();
        self.shared.healed.notify_all();
    }

    /// How many requests have been disturbed so far.
    pub fn injected(&self) -> usize {
        self.shared.injected.load(Ordering::SeqCst)
    }

    /// How many requests of this method with this in path or query have come, disturbed or not.
    pub fn requests(&self, method: &str, path: &str) -> usize {
        let requests = self.shared.requests.lock().expect("requests");
        requests.iter().filter(|r| r.split_once(' ').is_some_and(|(m, p)| m == method && p.contains(path))).count()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.heal();
    }
}

/// A request or an answer, byte for byte.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Message {
    fn first_line(&self) -> String {
        String::from_utf8_lossy(self.head.split(|&b| b == b'\r').next().unwrap_or_default()).into_owned()
    }

    fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.body].concat()
    }
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(head).into_owned();
    let found = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    found.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).next()
}

/// Reads a message; `None` where the connection ended before it began. `to_head`: it answers a HEAD request.
fn read_message(from: &mut impl BufRead, is_answer: bool, to_head: bool) -> Result<Option<Message>> {
    let mut head = Vec::new();
    loop {
        let n = from.by_ref().take(MAX_HEAD_BYTES).read_until(b'\n', &mut head)?;
        match n {
            0 if head.is_empty() => return Ok(None),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ if head.ends_with(b"\r\n\r\n") => break,
            _ if head.len() as u64 > MAX_HEAD_BYTES => return Err(Error::other("the head is too large")),
            _ => {}
        }
    }
    let status = is_answer.then(|| String::from_utf8_lossy(&head[9..12.min(head.len())]).into_owned());
    let is_empty = to_head || status.is_some_and(|s| s.starts_with('1') || s == "204" || s == "304");
    let mut body = Vec::new();
    if is_empty {
        return Ok(Some(Message { head, body }));
    }
    if let Some(len) = header(&head, "content-length") {
        let len: u64 = len.parse().map_err(|_| Error::other("no length"))?;
        if len > MAX_BODY_BYTES || from.take(len).read_to_end(&mut body)? as u64 != len {
            return Err(Error::other("the body is too large or cut off"));
        }
    } else if header(&head, "transfer-encoding").is_some_and(|e| e.eq_ignore_ascii_case("chunked")) {
        read_chunks(from, &mut body)?;
    } else if is_answer {
        from.take(MAX_BODY_BYTES).read_to_end(&mut body)?;
    }
    Ok(Some(Message { head, body }))
}

/// Appends chunks as they stand on the wire.
fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let start = body.len();
        from.by_ref().take(1024).read_until(b'\n', body)?;
        let size = String::from_utf8_lossy(&body[start..]).into_owned();
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| Error::other("no chunk size"))?;
        if body.len() as u64 + size > MAX_BODY_BYTES {
            return Err(Error::other("the body is too large"));
        }
        if from.take(size + 2).read_to_end(body)? as u64 != size + 2 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if size == 0 {
            return Ok(());
        }
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> Result<()> {
        client.set_read_timeout(Some(TIMEOUT))?;
        client.set_write_timeout(Some(TIMEOUT))?;
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client);
        let mut writer = client;
        while let Some(request) = read_message(&mut reader, false, false)? {
            let line = request.first_line();
            let mut words = line.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let fault = self.fault(method, path);
            match fault {
                Some(Fault::Status(status)) => {
                    writer.write_all(&refusal(status, method == "HEAD"))?;
                    continue;
                }
                Some(Fault::CutBefore) => return Ok(()),
                Some(Fault::CutWithin) => {
                    let bytes = request.bytes();
                    let mut upstream = self.connect()?;
                    return upstream.write_all(&bytes[..request.head.len().max(bytes.len() / 2)]);
                }
                _ => {}
            }
            let mut upstream = self.connect()?;
            upstream.write_all(&request.bytes())?;
            let answer = loop {
                let answer = read_message(&mut BufReader::new(&upstream), true, method == "HEAD")?;
                let answer = answer.ok_or(ErrorKind::UnexpectedEof)?;
                if !answer.first_line().contains(" 100 ") {
                    break answer;
                }
            };
            let bytes = answer.bytes();
            match fault {
                Some(Fault::LostAnswer) => return Ok(()),
                Some(Fault::Truncated) => return writer.write_all(&bytes[..bytes.len() / 2]),
                Some(Fault::Slow(wait)) => {
                    let (first, rest) = bytes.split_at(bytes.len() / 2);
                    for piece in [first, rest] {
                        self.wait(wait);
                        writer.write_all(piece)?;
                    }
                }
                _ => writer.write_all(&bytes)?,
            }
            if answer.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn connect(&self) -> Result<TcpStream> {
        let upstream = TcpStream::connect(self.upstream)?;
        upstream.set_read_timeout(Some(TIMEOUT))?;
        upstream.set_nodelay(true)?;
        Ok(upstream)
    }

    fn fault(&self, method: &str, path: &str) -> Option<Fault> {
        self.requests.lock().expect("requests").push(format!("{method} {path}"));
        let mut rules = self.rules.lock().expect("rules");
        let matches = |rule: &&mut Rule| {
            rule.left > 0 && (rule.method.is_empty() || rule.method == method) && path.contains(rule.path)
        };
        let rule = rules.iter_mut().find(matches)?;
        rule.left -= 1;
        self.injected.fetch_add(1, Ordering::SeqCst);
        Some(rule.fault)
    }

    /// Waits that long, or until nothing is disturbed any more.
    fn wait(&self, time: Duration) {
        let rules = self.rules.lock().expect("rules");
        drop(self.healed.wait_timeout_while(rules, time, |rules| !rules.is_empty()));
    }
}

/// An answer as S3 gives it.
fn refusal(status: u16, to_head: bool) -> Vec<u8> {
    let (reason, code) = match status {
        403 => ("Forbidden", "InvalidAccessKeyId"),
        412 => ("Precondition Failed", "PreconditionFailed"),
        429 => ("Too Many Requests", "SlowDown"),
        500 => ("Internal Server Error", "InternalError"),
        503 => ("Service Unavailable", "SlowDown"),
        _ => ("Refused", "Refused"),
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{reason}</Message></Error>\n"
    );
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head, if to_head { String::new() } else { body }].concat().into_bytes()
}
