//! A schema registry: the part of its REST interface that readers of records use, with faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use base64::Engine;
use serde_json::{Value, json};

use super::listener::{Listener, end};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryMood {
    Well,
    /// Connections end before an answer.
    Down,
    /// 500, in its own words.
    Failing,
    /// 404, as of a proxy that does not find it.
    Elsewhere,
}

pub struct TestRegistry {
    listener: Listener,
    state: Arc<Mutex<State>>,
}

struct State {
    mood: RegistryMood,
    /// `Basic …`, if it wants one.
    authorization: Option<String>,
    by_id: BTreeMap<u32, Value>,
    by_version: BTreeMap<String, Value>,
    /// Paths, as often as they were asked for, whatever the answer.
    asked: Vec<String>,
}

impl TestRegistry {
    pub fn start() -> Self {
        let (by_id, by_version) = (BTreeMap::new(), BTreeMap::new());
        let state = State { mood: RegistryMood::Well, authorization: None, by_id, by_version, asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let of_listener = state.clone();
        let listener = Listener::start(move |client| {
            while serve(&of_listener, &client).is_some() {}
            end(&client);
        });
        TestRegistry { listener, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.listener.address())
    }

    pub fn set_mood(&self, mood: RegistryMood) {
        self.state.lock().expect("whole").mood = mood;
    }

    /// From now on it wants this user.
    pub fn protect(&self, user: &str, password: &str) {
        let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
        self.state.lock().expect("whole").authorization = Some(format!("Basic {encoded}"));
    }

    /// `schema`: as a registry answers it.
    pub fn add(&self, id: u32, schema: Value) {
        self.state.lock().expect("whole").by_id.insert(id, schema);
    }

    pub fn add_version(&self, subject: &str, version: i64, schema: Value) {
        self.state.lock().expect("whole").by_version.insert(format!("/subjects/{subject}/versions/{version}"), schema);
    }

    /// How often a path was asked for.
    pub fn n_asked(&self, path: &str) -> usize {
        self.state.lock().expect("whole").asked.iter().filter(|asked| *asked == path).count()
    }

    pub fn asked_ids(&self) -> BTreeSet<String> {
        let state = self.state.lock().expect("whole");
        state.asked.iter().filter_map(|path| path.strip_prefix("/schemas/ids/")).map(str::to_owned).collect()
    }
}

/// One request. `None`: the connection ends.
fn serve(state: &Mutex<State>, mut client: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(client);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let target = lines.first()?.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let path = target.split('?').next()?.replace("%2F", "/").replace("%20", " ");
    let (status, body) = state.lock().expect("whole").answer(&path, &lines)?;
    let length = body.len();
    write!(client, "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").ok()
}

impl State {
    fn answer(&mut self, path: &str, head: &[String]) -> Option<(&'static str, String)> {
        self.asked.push(path.to_owned());
        let error = |code: i64, message: &str| json!({ "error_code": code, "message": message }).to_string();
        match self.mood {
            RegistryMood::Down => return None,
            RegistryMood::Failing => return Some(("500 Internal Server Error", error(50001, "Error in the backend"))),
            RegistryMood::Elsewhere => return Some(("404 Not Found", "<html>nobody is here</html>".to_owned())),
            RegistryMood::Well => {}
        }
        let given = head.iter().filter_map(|line| line.split_once(": "));
        let given = given.filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value).next();
        if self.authorization.as_deref().is_some_and(|wanted| given != Some(wanted)) {
            return Some(("401 Unauthorized", error(401, "Unauthorized")));
        }
        let found = match path.strip_prefix("/schemas/ids/") {
            _ if path == "/schemas/types" => Some(json!(["JSON", "PROTOBUF", "AVRO"])),
            Some(id) => id.parse().ok().and_then(|id: u32| self.by_id.get(&id)).cloned(),
            None => self.by_version.get(path).cloned(),
        };
        Some(match found {
            Some(answer) => ("200 OK", answer.to_string()),
            None if path.starts_with("/schemas") => ("404 Not Found", error(40403, "Schema not found")),
            None => ("404 Not Found", error(40401, "Subject not found")),
        })
    }
}
