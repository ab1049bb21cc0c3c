//! The most frequent n-grams of a side, as text, for people: counted in a uniform sample of its documents, so that memory
//! and time are bounded. Scoring never uses them.

use std::collections::HashMap;

use crate::features::{for_each_token, lowercase_into};
use crate::record::TopicPartition;
use crate::select::{Noise, Reservoir};

/// Documents that are sampled, and how much of each is looked at.
const SAMPLE_DOCUMENTS: usize = 2_000;
const SAMPLE_BYTES: usize = 8 << 10;
const MAX_N: u8 = 2;

/// A uniform sample of the documents that were offered: the same whatever the order, and of any merge.
pub struct Kept(Option<Reservoir<String>>);

impl Kept {
    /// Keeps nothing if no n-grams are wanted.
    pub fn new(keep_ngrams: usize) -> Self {
        Kept((keep_ngrams > 0).then(|| Reservoir::new(SAMPLE_DOCUMENTS)))
    }

    pub fn offer(&mut self, input: usize, line: u64, text: &str) {
        let Some(reservoir) = &mut self.0 else { return };
        let place = (input as i64) << 40 | line as i64;
        let key = SAMPLE_NOISE.with(|noise| noise.sampling(place));
        if reservoir.might_hold(key) {
            let end = text.floor_char_boundary(SAMPLE_BYTES);
            reservoir.offer(place, key, text[..end].to_owned());
        }
    }

    pub fn merge(&mut self, other: Kept) {
        if let (Some(mine), Some(theirs)) = (&mut self.0, other.0) {
            for chosen in theirs.select(SAMPLE_DOCUMENTS).chosen {
                mine.offer(chosen.offset, chosen.key, chosen.item);
            }
        }
    }
}

thread_local! {
    static SAMPLE_NOISE: Noise = Noise::new(0, &TopicPartition::new("kept n-grams", 0));
}

/// The `n` most frequent uni- and bigrams of the sample, most frequent first.
pub fn top_ngrams(kept: Kept, max_n: u8, n: usize) -> Vec<(String, u64)> {
    let Some(reservoir) = kept.0 else { return Vec::new() };
    let mut counts: HashMap<String, u64> = HashMap::new();
    let (mut lowered, mut tokens) = (String::new(), Vec::new());
    for document in reservoir.select(SAMPLE_DOCUMENTS).chosen {
        lowered.clear();
        tokens.clear();
        lowercase_into(&document.item, &mut lowered);
        for_each_token(&lowered, |token| tokens.push(token));
        for size in 1..=usize::from(max_n.min(MAX_N)) {
            for ngram in tokens.windows(size) {
                add(&mut counts, &ngram.iter().map(|range| &lowered[range.clone()]).collect::<Vec<_>>());
            }
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(n);
    counts
}

fn add(counts: &mut HashMap<String, u64>, ngram: &[&str]) {
    match *ngram {
        // Most n-grams have been seen before: look before a string is made.
        [token] => match counts.get_mut(token) {
            Some(count) => *count += 1,
            None => drop(counts.insert(token.to_owned(), 1)),
        },
        _ => *counts.entry(ngram.join(" ")).or_default() += 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_come_first_and_ties_by_name() {
        let mut kept = Kept::new(5);
        kept.offer(0, 1, "A b a b c");
        kept.offer(0, 2, "a");
        let top = top_ngrams(kept, 2, 4);
        let expected = [("a", 3), ("a b", 2), ("b", 2), ("b a", 1)];
        assert_eq!(top, expected.map(|(ngram, count)| (ngram.to_owned(), count)));
    }

    #[test]
    fn the_sample_does_not_depend_on_the_threads() {
        let all: Vec<u64> = (0..5_000).collect();
        let top = |parts: usize| {
            let mut merged = Kept::new(3);
            for part in 0..parts {
                let mut kept = Kept::new(3);
                all.iter()
                    .filter(|n| **n as usize % parts == part)
                    .for_each(|&n| kept.offer(1, n, &format!("w{} x", n % 7)));
                merged.merge(kept);
            }
            top_ngrams(merged, 2, 9)
        };
        assert_eq!(top(1), top(3));
        assert_eq!(top(1)[0], ("x".to_owned(), 2_000));
    }
}
