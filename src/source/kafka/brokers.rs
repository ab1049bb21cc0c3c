//! Whether the brokers answer, said once when it changes. Pure: what the client tells comes in, with the time.
//!
//! The client connects again by itself, many times a second at first, and tells of each try. A person wants to know that a
//! broker is away, why, and when it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use rdkafka::statistics::{Broker, Statistics};

/// A broker that owes an answer for so long has gone without a word, and one that is away for so long is told of: a
/// connection that was just cut comes back at once.
const SILENCE: Duration = Duration::from_secs(5);

/// How the brokers are, by what the client counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether the client hears from any broker at all.
    is_any: bool,
    /// Those that it needs, by address, and whether they answer. It keeps no connections to others.
    brokers: BTreeMap<String, bool>,
}

impl Seen {
    pub(super) fn of(statistics: &Statistics) -> Self {
        let is_up = |broker: &Broker| matches!(broker.state.as_str(), "UP" | "REAUTH");
        let owes = |broker: &Broker| broker.waitresp_cnt > 0 && broker.rxidle > SILENCE.as_micros() as i64;
        let all = || statistics.brokers.values();
        let needed = all().filter(|broker| broker.nodeid >= 0 && broker.state != "INIT");
        let answers = |broker: &Broker| (address(&broker.nodename).to_owned(), is_up(broker) && !owes(broker));
        let brokers: BTreeMap<_, _> = needed.map(answers).collect();
        // The group's coordinator has a connection of its own, on which it may let a member wait for the others. Names of
        // `bootstrap.servers` count until brokers are known.
        let source = if brokers.is_empty() { "configured" } else { "logical" };
        let is_other = |broker: &Broker| broker.nodeid < 0 && [source, "logical"].contains(&broker.source.as_str());
        let is_any = brokers.values().any(|answers| *answers) || all().any(|broker| is_other(broker) && is_up(broker));
        Seen { is_any, brokers }
    }
}

/// What a person should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Others answer.
    Away {
        broker: String,
        reason: String,
    },
    Back {
        broker: String,
        after: Duration,
    },
    NoneAnswers {
        reason: String,
    },
    SomeAnswer {
        after: Duration,
    },
}

impl Change {
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Change::Back { .. } | Change::SomeAnswer { .. })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Away { broker, reason } => {
                write!(
                    f,
                    "broker {broker} does not answer: {reason}; its partitions wait until it or another leads them"
                )
            }
            Change::Back { broker, after } => write!(f, "broker {broker} answers again, after {} s", after.as_secs()),
            Change::NoneAnswers { reason } => {
                write!(f, "no broker answers: {reason}; nothing is read until one does, which is tried all the time")
            }
            Change::SomeAnswer { after } => write!(f, "a broker answers again, after {} s", after.as_secs()),
        }
    }
}

/// What is known so far.
#[derive(Debug, Default)]
pub(super) struct Brokers {
    /// Why connections failed last, by broker.
    reasons: BTreeMap<String, String>,
    /// Since when brokers do not answer.
    silent: BTreeMap<String, Instant>,
    /// Those of them that were told of.
    told: BTreeSet<String>,
    /// Since when none does, and whether that was told.
    none: Option<(Instant, bool)>,
}

impl Brokers {
    /// Takes note of why a connection failed, in the client's words: `HOST:PORT/ID: problem (after …)`.
    pub(super) fn failed(&mut self, words: &str) {
        if let Some((broker, reason)) = words.split_once(": ") {
            // What is not there any more is not worth much memory.
            if self.reasons.len() > 1_000 {
                self.reasons.clear();
            }
            self.reasons.insert(address(broker).to_owned(), plain(reason));
        }
    }

    /// Looks at all brokers, every few seconds.
    pub(super) fn look(&mut self, Seen { is_any, brokers }: &Seen, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        match (*is_any, self.none) {
            (true, Some((since, true))) => {
                changes.push(Change::SomeAnswer { after: now - since });
                // The others are on their way.
                self.silent.clear();
            }
            (false, Some((since, false))) if now - since >= SILENCE => {
                let of_needed = brokers.keys().find_map(|name| self.reasons.get(name));
                let reason = of_needed.or(self.reasons.values().next_back()).cloned();
                changes.push(Change::NoneAnswers { reason: reason.unwrap_or_else(silence) });
                self.none = Some((since, true));
            }
            (false, None) => self.none = Some((now, false)),
            _ => {}
        }
        if *is_any {
            self.none = None;
        }
        for (name, answers) in brokers {
            if *answers {
                self.reasons.remove(name);
                let since = self.silent.remove(name);
                if let Some(since) = since.filter(|_| self.told.remove(name)) {
                    changes.push(Change::Back { broker: name.clone(), after: now - since });
                }
            } else {
                let since = *self.silent.entry(name.clone()).or_insert(now);
                // While none answers, one word is enough.
                if *is_any && now - since >= SILENCE && self.told.insert(name.clone()) {
                    let reason = self.reasons.get(name).cloned().unwrap_or_else(silence);
                    changes.push(Change::Away { broker: name.clone(), reason });
                }
            }
        }
        // Those that the client does not need any more.
        self.silent.retain(|name, _| brokers.contains_key(name));
        self.told.retain(|name| self.silent.contains_key(name));
        changes
    }
}

fn silence() -> String {
    format!("no connection, or no answer within {} s", SILENCE.as_secs())
}

/// `HOST:PORT` of `HOST:PORT/ID`.
fn address(name: &str) -> &str {
    name.split_once('/').map_or(name, |(address, _)| address)
}

/// Words of the client without what only its authors need: the thread, the state, how many others were the same.
pub(in crate::source) fn plain(words: &str) -> String {
    let words = match words.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        Some((_, rest)) => rest,
        None => words,
    };
    let words = words.split_once(" (after ").map_or(words, |(words, _)| words);
    ["ipv4#", "ipv6#", "Local: ", "Broker: "].iter().fold(words.to_owned(), |words, noise| words.replace(noise, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(of: &[(&str, bool)]) -> Seen {
        let brokers = of.iter().map(|&(name, answers)| (name.to_owned(), answers)).collect();
        Seen { is_any: of.iter().any(|(_, answers)| *answers), brokers }
    }

    #[test]
    fn an_outage_is_told_of_once_and_so_is_its_end() {
        let (mut brokers, start) = (Brokers::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let words = "a:1/1: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)";
        let (up, down) = (all(&[("a:1", true), ("b:1", true)]), all(&[("a:1", false), ("b:1", false)]));
        assert_eq!(brokers.look(&up, at(0)), []);
        brokers.failed(words);
        for n in [2, 4, 6] {
            assert_eq!(brokers.look(&down, at(n)), [], "the connection may come back at once");
            brokers.failed(words);
        }
        let reason = "Connect to 127.0.0.1:1 failed: Connection refused".to_owned();
        let told = brokers.look(&down, at(8));
        assert_eq!(told, [Change::NoneAnswers { reason }]);
        assert!(
            told[0].to_string().starts_with("no broker answers: Connect to 127.0.0.1:1 failed: Connection refused; ")
        );
        (10..60).step_by(2).for_each(|n| assert_eq!(brokers.look(&down, at(n)), [], "it is known"));
        let one = all(&[("a:1", true), ("b:1", false)]);
        assert_eq!(brokers.look(&one, at(62)), [Change::SomeAnswer { after: Duration::from_secs(60) }]);
        assert_eq!(brokers.look(&one, at(64)), [], "the other one is on its way");
        assert_eq!(brokers.look(&up, at(66)), []);
    }

    #[test]
    fn one_of_several_is_told_of_with_its_name() {
        let (mut brokers, start) = (Brokers::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let one = all(&[("a:1", false), ("b:1", true)]);
        assert_eq!(brokers.look(&one, at(0)), []);
        let told = brokers.look(&one, at(5));
        assert!(matches!(&told[..], [Change::Away { broker, .. }] if broker == "a:1"), "{told:?}");
        assert_eq!(brokers.look(&one, at(10)), []);
        let back = brokers.look(&all(&[("a:1", true), ("b:1", true)]), at(15));
        assert_eq!(back, [Change::Back { broker: "a:1".to_owned(), after: Duration::from_secs(15) }]);
        // A blink is none.
        assert_eq!(brokers.look(&one, at(20)), []);
        assert_eq!(brokers.look(&all(&[("a:1", true)]), at(22)), []);
        // A broker that is not needed any more is forgotten.
        assert_eq!(brokers.look(&one, at(24)), []);
        assert_eq!(brokers.look(&all(&[("b:1", true)]), at(26)), []);
        assert_eq!(brokers.look(&one, at(30)), []);
    }

    #[test]
    fn the_words_of_the_client_become_plain() {
        assert_eq!(
            plain(
                "[thrd:a:1/bootstrap]: a:1/bootstrap: Disconnected (after 12ms in state UP, 1 identical error(s) suppressed)"
            ),
            "a:1/bootstrap: Disconnected"
        );
        assert_eq!(plain("Local: All broker connections are down"), "All broker connections are down");
    }
}
