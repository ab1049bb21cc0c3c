//! How many documents of each source came, and how many of them were selected, in bounded memory. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Sources that are told apart; those that come later are counted together.
const MAX_SOURCES: usize = 1_000;
/// Longer names are data, not names.
const MAX_NAME_BYTES: usize = 256;

/// Counts by source. Additive.
#[derive(Debug, Clone, Default)]
pub struct SourceCounts {
    named: HashMap<Box<str>, usize>,
    /// The source of a document is often that of the one before it.
    last: Option<usize>,
    counts: Vec<(Box<str>, Counts)>,
    unnamed: Counts,
    beyond: Counts,
    name_bytes: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    documents: u64,
    selected: u64,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.documents += other.documents;
        self.selected += other.selected;
    }
}

/// The most frequent sources, and all others together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptanceBySource {
    /// By documents, most first; equal ones by name.
    pub sources: Vec<SourceAcceptance>,
    /// Documents of all other sources.
    pub other_documents: u64,
    pub other_selected: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAcceptance {
    /// `None`: documents without a source.
    pub source: Option<String>,
    pub documents: u64,
    pub selected: u64,
}

impl SourceCounts {
    /// A document came.
    pub fn document(&mut self, source: Option<&str>) {
        self.of(source).documents += 1;
    }

    /// One of the documents counted was selected.
    pub fn selected(&mut self, source: Option<&str>) {
        self.of(source).selected += 1;
    }

    pub fn merge(&mut self, other: &SourceCounts) {
        // In the order in which they were met, so that the sources told apart do not depend on a hash.
        for (source, counts) in &other.counts {
            self.of(Some(source)).add(*counts);
        }
        self.unnamed.add(other.unnamed);
        self.beyond.add(other.beyond);
    }

    /// Bytes that it holds on to.
    pub fn held_bytes(&self) -> usize {
        // Each name twice, each entry in the list and in the map.
        2 * self.name_bytes + self.counts.len() * (2 * size_of::<(Box<str>, Counts)>())
    }

    /// Entropy over the sources, in nats: of all documents, and of those selected. The higher, the more evenly the sources
    /// are there. Sources that are not told apart count as one.
    pub fn entropies(&self) -> (f64, f64) {
        let entropy = |of: fn(&Counts) -> u64| {
            let counts = || self.counts.iter().map(|(_, c)| c).chain([&self.unnamed, &self.beyond]).map(of);
            let total = counts().sum::<u64>() as f64;
            let part = |n: u64| n as f64 / total * (total / n as f64).ln();
            counts().filter(|n| *n > 0).map(part).sum()
        };
        (entropy(|c| c.documents), entropy(|c| c.selected))
    }

    /// The `n` sources with the most documents.
    pub fn top(&self, n: usize) -> AcceptanceBySource {
        let named = self.counts.iter().map(|(source, counts)| (Some(&**source), *counts));
        let mut all: Vec<_> = named.chain([(None, self.unnamed)]).filter(|(_, c)| *c != Counts::default()).collect();
        all.sort_unstable_by(|a, b| b.1.documents.cmp(&a.1.documents).then(a.0.cmp(&b.0)));
        let mut others = self.beyond;
        all.iter().skip(n).for_each(|(_, counts)| others.add(*counts));
        let of = |(source, Counts { documents, selected }): (Option<&str>, Counts)| SourceAcceptance {
            source: source.map(str::to_owned),
            documents,
            selected,
        };
        AcceptanceBySource {
            sources: all.into_iter().take(n).map(of).collect(),
            other_documents: others.documents,
            other_selected: others.selected,
        }
    }

    fn of(&mut self, source: Option<&str>) -> &mut Counts {
        let Some(source) = source else { return &mut self.unnamed };
        let is_last = self.last.filter(|&i| *self.counts[i].0 == *source);
        let known = is_last.or_else(|| self.named.get(source).copied());
        let index = match known {
            Some(index) => index,
            None if self.counts.len() >= MAX_SOURCES || source.len() > MAX_NAME_BYTES => return &mut self.beyond,
            None => {
                self.named.insert(source.into(), self.counts.len());
                self.counts.push((source.into(), Counts::default()));
                self.name_bytes += source.len();
                self.counts.len() - 1
            }
        };
        self.last = Some(index);
        &mut self.counts[index].1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream() -> impl Strategy<Value = Vec<(Option<String>, bool)>> {
        proptest::collection::vec((proptest::option::of("[a-f]"), any::<bool>()), 0..200)
    }

    fn count<'a>(stream: impl IntoIterator<Item = &'a (Option<String>, bool)>) -> SourceCounts {
        let mut counts = SourceCounts::default();
        for (source, selected) in stream {
            counts.document(source.as_deref());
            if *selected {
                counts.selected(source.as_deref());
            }
        }
        counts
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_parts_add_up(stream in stream(), cut in 0usize..200, n in 0usize..8) {
            let cut = cut.min(stream.len());
            let mut parts = count(&stream[..cut]);
            parts.merge(&count(&stream[cut..]));
            let top = count(&stream).top(n);
            prop_assert_eq!(&parts.top(n), &top);
            prop_assert!(top.sources.len() <= n && top.sources.is_sorted_by(|a, b| a.documents >= b.documents));
            let documents: u64 = top.sources.iter().map(|s| s.documents).sum();
            let selected: u64 = top.sources.iter().map(|s| s.selected).sum();
            prop_assert_eq!(documents + top.other_documents, stream.len() as u64);
            prop_assert_eq!(selected + top.other_selected, stream.iter().filter(|s| s.1).count() as u64);
            for row in &top.sources {
                let expected = stream.iter().filter(|(source, _)| *source == row.source).count() as u64;
                prop_assert_eq!(row.documents, expected);
            }
        }
    }

    #[test]
    fn even_sources_have_the_highest_entropy() {
        let mut counts = SourceCounts::default();
        assert_eq!(counts.entropies(), (0.0, 0.0));
        for (source, selected) in [(Some("a"), true), (Some("a"), true), (Some("b"), true), (None, false)] {
            counts.document(source);
            if selected {
                counts.selected(source);
            }
        }
        // Of a half and two quarters, and of two thirds and a third.
        let (documents, selected) = counts.entropies();
        assert!((documents - 1.5 * 2f64.ln()).abs() < 1e-12 && (selected - 0.636_514_168_294_813).abs() < 1e-12);
    }

    #[test]
    fn memory_is_bounded_whatever_the_sources_are() {
        let mut counts = SourceCounts::default();
        let mut bytes = 0;
        for i in 0..5_000 {
            counts.document(Some(&format!("source {i}")));
            counts.document(Some(&"x".repeat(300 + i)));
            if i == MAX_SOURCES {
                bytes = counts.held_bytes();
            }
        }
        assert_eq!(counts.held_bytes(), bytes);
        let top = counts.top(20);
        assert_eq!((top.sources.len(), top.other_documents), (20, 10_000 - 20));
    }
}
