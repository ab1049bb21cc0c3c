use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vector {
    text: String,
    tokens: Vec<String>,
    unigram_buckets: Vec<u32>,
    bigram_buckets: Vec<u32>,
}

/// Every awkward text of the published package's vectors: tokens, unigram and bigram buckets.
#[test]
fn tokens_and_buckets_equal_the_published_package() {
    let vectors = include_str!("../../tests/reference/tokens.jsonl");
    let mut scratch = Scratch::default();
    let mut n_vectors = 0;
    for line in vectors.lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        let mut lowered = String::new();
        lowercase_into(&vector.text, &mut lowered);
        let mut tokens = Vec::new();
        for_each_token(&lowered, |range| tokens.push(lowered[range].to_owned()));
        assert_eq!(tokens, vector.tokens, "tokens of {:?}", vector.text);

        let mut buckets = Vec::new();
        let n_tokens =
            Featuriser::default().for_each_chunk(&vector.text, &mut scratch, |c| buckets.extend_from_slice(c));
        assert_eq!(n_tokens as usize, tokens.len());
        // Order by last token: u0, u1, b01, u2, b12, …
        let mut expected = Vec::new();
        for (i, &unigram) in vector.unigram_buckets.iter().enumerate() {
            expected.push(unigram);
            expected.extend(i.checked_sub(1).map(|b| vector.bigram_buckets[b]));
        }
        assert_eq!(buckets, expected, "buckets of {:?}", vector.text);
        n_vectors += 1;
    }
    assert!(n_vectors > 20, "only {n_vectors} vectors were read");
}

#[test]
fn longer_ngrams_and_other_bucket_counts() {
    // Python: int(hashlib.sha256(b"a b c").hexdigest(), 16) % 97
    let featuriser = Featuriser { max_n: 3, buckets: 97, ..Featuriser::default() };
    let mut buckets = Vec::new();
    featuriser.for_each_chunk("A b C", &mut Scratch::default(), |c| buckets.extend_from_slice(c));
    assert_eq!(buckets, PYTHON_TRIGRAM_BUCKETS);
}

/// Buckets modulo 97 of: a, b, "a b", c, "b c", "a b c".
const PYTHON_TRIGRAM_BUCKETS: [u32; 6] = [34, 30, 27, 64, 43, 8];

#[test]
fn settings_out_of_range_are_refused() {
    assert!(Featuriser { max_n: 0, buckets: 10, ..Featuriser::default() }.validated().is_err());
    assert!(Featuriser { max_n: 9, buckets: 10, ..Featuriser::default() }.validated().is_err());
    assert!(Featuriser { max_n: 2, buckets: 1, ..Featuriser::default() }.validated().is_err());
    assert!(Featuriser { max_n: 2, buckets: 1 << 25, ..Featuriser::default() }.validated().is_err());
    assert!(Featuriser::default().validated().is_ok());
}
