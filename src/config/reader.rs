//! Reads typed values by key and gathers what is wrong with them; in the end, keys that nobody asked for are wrong too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use config::{ConfigError, Environment, File, FileFormat, Source, Value, ValueKind};

use super::ConfigErrors;

const ENV_PREFIX: &str = "WINNOWD_";

/// One merged configuration while it is being read.
pub(super) struct Reader {
    /// Leaves by dotted key, as written (`kafka.topics`).
    values: BTreeMap<String, Value>,
    read: BTreeSet<String>,
    errors: Vec<String>,
}

impl Reader {
    pub fn new(
        defaults: &str,
        file: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut variables = config::Map::new();
        for (name, value) in environment {
            let Some(key) = name.strip_prefix(ENV_PREFIX) else { continue };
            if key.contains("__") {
                variables.insert(key.to_owned(), value);
            } else if !is_service_link(key) {
                errors.push(format!(
                    "environment variable `{name}` names no key: write WINNOWD_<SECTION>__<KEY> with two underscores"
                ));
            }
        }
        let environment = Environment::default().separator("__").source(Some(variables));
        let merged = config::Config::builder()
            .add_source(File::from_str(defaults, FileFormat::Toml))
            .add_source(File::from_str(file, FileFormat::Toml))
            .add_source(environment)
            .build();
        let root = match merged.and_then(|m| m.collect()) {
            Ok(root) => root,
            Err(e) => {
                errors.push(parse_error(&e));
                return Err(ConfigErrors(errors));
            }
        };
        let mut values = BTreeMap::new();
        for (section, value) in root {
            flatten(section, value, &mut values);
        }
        Ok(Reader { values, read: BTreeSet::new(), errors })
    }

    pub fn error(&mut self, key: &str, value: &str, problem: impl std::fmt::Display) {
        self.errors.push(format!("`{key}` = `{value}`: {problem}"));
    }

    /// The value as text, from whatever scalar it is. A missing key is a fault of `default.toml`.
    pub fn string(&mut self, key: &str) -> String {
        self.read.insert(key.to_owned());
        match self.values.get(key).map(|value| value.kind.clone()) {
            Some(ValueKind::Table(_) | ValueKind::Array(_)) => {
                self.error(key, "[…]", "expected a single value");
                String::new()
            }
            Some(ValueKind::Float(f)) => f.to_string(),
            Some(kind) => kind.to_string(),
            None => {
                self.error(key, "", "is not set");
                String::new()
            }
        }
    }

    /// `None` for the empty string.
    pub fn optional(&mut self, key: &str) -> Option<String> {
        Some(self.string(key)).filter(|s| !s.is_empty())
    }

    /// Reads with `parse`; a mistake is noted and `stand_in` is used until the end, when all mistakes are reported.
    pub fn parse<T>(&mut self, key: &str, stand_in: T, parse: impl FnOnce(&str) -> Result<T, String>) -> T {
        let value = self.string(key);
        parse(&value).unwrap_or_else(|problem| {
            self.error(key, &value, problem);
            stand_in
        })
    }

    pub fn integer(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.parse(key, *range.start(), |value| {
            let (least, most) = (range.start(), range.end());
            let expected = match *most {
                u64::MAX => format!("expected an integer of at least {least}"),
                _ => format!("expected an integer from {least} to {most}"),
            };
            value.parse::<u64>().ok().filter(|n| range.contains(n)).ok_or(expected)
        })
    }

    pub fn number_above_zero(&mut self, key: &str) -> f64 {
        self.parse(key, 1.0, |value| {
            let number = value.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
            number.ok_or("expected a number above 0".to_owned())
        })
    }

    pub fn boolean(&mut self, key: &str) -> bool {
        self.parse(key, false, |value| value.parse().map_err(|_| "expected true or false".to_owned()))
    }

    pub fn bytes(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.parse(key, *range.start(), |value| {
            let bytes = value.parse::<bytesize::ByteSize>();
            let bytes = bytes.map_err(|_| "expected a size such as 64MiB".to_owned())?.as_u64();
            let shown = |n: &u64| bytesize::ByteSize(*n).display().iec().to_string();
            if range.contains(&bytes) {
                Ok(bytes)
            } else {
                Err(format!("must be from {} to {}", shown(range.start()), shown(range.end())))
            }
        })
    }

    pub fn duration(&mut self, key: &str, range: std::ops::RangeInclusive<Duration>) -> Duration {
        self.parse(key, *range.start(), |value| {
            let duration =
                humantime::parse_duration(value).map_err(|_| "expected a duration such as 30s".to_owned())?;
            if range.contains(&duration) {
                return Ok(duration);
            }
            let shown = |d: &Duration| humantime::format_duration(*d).to_string();
            Err(format!("must be from {} to {}", shown(range.start()), shown(range.end())))
        })
    }

    pub fn choice(&mut self, key: &str, choices: &[&str]) -> String {
        self.parse(key, choices[0].to_owned(), |value| {
            let known = choices.contains(&value).then(|| value.to_owned());
            known.ok_or_else(|| format!("expected one of: {}", choices.join(", ")))
        })
    }

    /// A list; from the environment also one string with commas.
    pub fn list(&mut self, key: &str) -> Vec<String> {
        match self.values.get(key).map(|value| value.kind.clone()) {
            Some(ValueKind::Array(items)) => {
                self.read.insert(key.to_owned());
                items.iter().map(|item| item.kind.to_string()).collect()
            }
            _ => self.string(key).split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect(),
        }
    }

    /// All keys below `prefix`, which are free.
    pub fn map(&mut self, prefix: &str) -> BTreeMap<String, String> {
        let dotted = format!("{prefix}.");
        let below = self.values.iter().filter_map(|(key, value)| Some((key.strip_prefix(&dotted)?, value)));
        let map: BTreeMap<_, _> = below.map(|(name, value)| (name.to_owned(), value.kind.to_string())).collect();
        self.read.extend(map.keys().map(|name| format!("{dotted}{name}")));
        map
    }

    /// The configuration, or every mistake.
    pub fn finish<T>(mut self, config: T) -> Result<T, ConfigErrors> {
        let unknown: Vec<_> = self.values.keys().filter(|key| !self.read.contains(*key)).cloned().collect();
        for key in unknown {
            let near = nearest(&key, &self.read);
            // A mistyped name of a secret need not look like one.
            let hide = is_secret(&key) || near.is_some_and(|near| is_secret(near));
            let shown = if hide { "***".to_owned() } else { self.values[&key].kind.to_string() };
            let mut error = format!("`{key}` = `{shown}`: unknown key");
            if let Some(near) = near {
                error.push_str(&format!(", did you mean `{near}`?"));
            }
            self.errors.push(error);
        }
        if self.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// Whether values of this key must not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let words = ["pass", "pwd", "secret", "credential", "jaas", "key.pem", "oauth", "headers"];
    // Not what counts tokens.
    key.ends_with("token") || words.iter().any(|word| key.contains(word))
}

fn parse_error(error: &ConfigError) -> String {
    match error {
        ConfigError::FileParse { cause, .. } => {
            // The parser also quotes the line, which may hold a secret.
            let said = cause.to_string();
            let is_quote = |line: &&str| line.trim_start().starts_with(|c: char| c == '|' || c.is_ascii_digit());
            let kept: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !is_quote(line)).collect();
            format!("the file is not valid TOML: {}", kept.join(": "))
        }
        other => other.to_string(),
    }
}

/// Kubernetes sets such variables for a service that is called `winnowd`.
fn is_service_link(key: &str) -> bool {
    ["PORT", "SERVICE_HOST", "SERVICE_PORT"].iter().any(|link| {
        let plain = key == *link || key.ends_with(&format!("_{link}"));
        plain || key.starts_with(&format!("{link}_")) || key.contains(&format!("_{link}_"))
    })
}

fn flatten(key: String, value: Value, out: &mut BTreeMap<String, Value>) {
    match value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                flatten(format!("{key}.{name}"), value, out);
            }
        }
        _ => {
            out.insert(key, value);
        }
    }
}

/// The known key that takes the fewest edits, if they are few.
fn nearest<'k>(key: &str, known: &'k BTreeSet<String>) -> Option<&'k String> {
    let best = known.iter().map(|k| (edit_distance(key, k), k)).min()?;
    (best.0 <= 1 + key.len() / 6).then_some(best.1)
}

/// Levenshtein distance over bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
