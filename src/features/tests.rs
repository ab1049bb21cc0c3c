mod specification;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use specification::specification;

#[derive(Deserialize)]
struct Vector {
    text: String,
    tokens: Vec<String>,
    unigram_buckets: Vec<u32>,
    bigram_buckets: Vec<u32>,
}

#[test]
fn an_ngram_has_the_bucket_that_texts_have_it_in() {
    for hash in [NgramHash::Reference, NgramHash::Fast] {
        let (featuriser, mut scratch) = (Featuriser { hash, ..Featuriser::default() }, Scratch::default());
        let mut all = Vec::new();
        featuriser.for_each_chunk("Select the night", &mut scratch, |buckets| all.extend_from_slice(buckets));
        let mut of = |ngram| featuriser.bucket_of(ngram, &mut scratch);
        let expected = ["select", "the", "select the", "night", "the night"].map(|ngram| of(ngram).unwrap());
        assert_eq!(all, expected);
        assert_eq!((of(""), of("select the night")), (None, None));
    }
}

/// The buckets of a short text can be had again, until the next one comes.
#[test]
fn a_short_text_is_one_chunk() {
    let mut scratch = Scratch::default();
    let longest = "long words, ".repeat(Featuriser::CHUNK_BYTES / 12 + 1);
    for hash in [NgramHash::Reference, NgramHash::Fast] {
        let featuriser = Featuriser { hash, ..Featuriser::default() };
        for text in ["one", "one two, three", &longest[..Featuriser::CHUNK_BYTES], ""] {
            let mut chunks: Vec<Vec<u32>> = Vec::new();
            featuriser.for_each_chunk(text, &mut scratch, |buckets| chunks.push(buckets.to_vec()));
            assert_eq!(chunks.len(), usize::from(!text.is_empty()));
            assert_eq!(scratch.last_chunk(), chunks.concat());
        }
    }
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

/// Buckets with given kernels, the text cut into segments of at least so many bytes.
fn by_kernel(featuriser: &Featuriser, text: &str, segment_bytes: usize, scratch: &mut Scratch) -> (u32, Vec<u32>) {
    let mut buckets = Vec::new();
    let n_tokens = featuriser.for_each_chunk_of(text, segment_bytes, scratch, |chunk| buckets.extend_from_slice(chunk));
    (n_tokens, buckets)
}

fn scratches() -> Vec<(String, Scratch)> {
    let mut scratches = Vec::new();
    for text in TextKernel::available() {
        for digest in DigestKernel::available() {
            let name = format!("text {}, digests {}", text.as_str(), digest.as_str());
            scratches.push((name, Scratch::with_kernels(text, digest)));
        }
    }
    scratches
}

fn assert_kernels_agree(featuriser: &Featuriser, text: &str, segment_bytes: usize) {
    let expected = specification(featuriser, text);
    for (name, mut scratch) in scratches() {
        for usize_of_segment in [segment_bytes, SEGMENT_BYTES] {
            // Twice: the second time there are memories of the first.
            for _ in 0..2 {
                let found = by_kernel(featuriser, text, usize_of_segment, &mut scratch);
                assert_eq!(found, expected, "{name}, segments of {usize_of_segment}: {text:?}");
            }
        }
    }
}

#[test]
fn fast_buckets_never_change() {
    // Found by a program in another language, from the definition.
    const TEXT: &str = "The naïve café, “Straße” 42: Интернационализация!";
    let (n_tokens, buckets) = specification(&Featuriser::with_hash(NgramHash::Fast), TEXT);
    assert_eq!(n_tokens, 11);
    assert_eq!(
        buckets,
        [
            2160, 8005, 5548, 633, 8068, 6307, 7145, 522, 103, 5523, 5946, 3801, 1052, 351, 9787, 4714, 4108, 535, 312,
            2655, 4633
        ]
    );
    let trigrams = Featuriser { hash: NgramHash::Fast, max_n: 3, buckets: 1 << 20 };
    let (_, buckets) = specification(&trigrams, TEXT);
    assert!(buckets.ends_with(&[56196, 32762, 624387, 278452, 485823, 270736]), "{buckets:?}");
}

#[test]
fn kernels_agree_at_every_alignment() {
    let words = "Ünïcode, ASCII_and-42 МИР κόσμος 文字 \u{1F600}\u{300}x";
    for hash in [NgramHash::Reference, NgramHash::Fast] {
        for before in 0..=130 {
            assert_kernels_agree(&Featuriser::with_hash(hash), &(" ".repeat(before) + words), 64);
            assert_kernels_agree(&Featuriser::with_hash(hash), &("a".repeat(before) + words), 64);
            assert_kernels_agree(&Featuriser::with_hash(hash), &("é".repeat(before) + words + &"!".repeat(before)), 7);
        }
    }
}

/// Texts of which kernels may think otherwise: every class of character, all lengths of UTF-8, case that changes the length
/// or depends on neighbours, tokens around the sizes of words, blocks and messages.
fn awkward_texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-zA-Z0-9_]{1,9}",
        4 => " {1,3}|\n|\t|\r\n|\u{1c}|\u{a0}|\u{3000}|\u{85}",
        3 => "[!-/:-@\\[-`{-~]{1,4}",
        2 => "[А-Яа-яё]{1,8}|[ä-üÄ-Üß]{1,3}|[一-十ぁ-ん]{1,5}",
        1 => "[ΑΒΓΣασς.']{1,5}|İ|K|Å|ẞ|Ⱥ|ﬀ|Ǆ|\u{345}|Ი",
        1 => "[\u{1F600}-\u{1F64F}\u{10400}-\u{10427}\u{1D400}]{1,3}|\u{300}|\u{200d}|\0",
        1 => "[a-z]{14,18}|[A-Z]{50,70}|[!]{30,70}|[Ѐ-Џ]{25,40}",
        // Without white space: cut between classes, or not at all.
        2 => "[0-9a-zA_Σ.,:'^`/]{2,80}|([0-9],){5,60}|(Σ[.,'7]){5,40}",
        1 => any::<String>(),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn kernels_agree_on_awkward_texts(
        text in awkward_texts(),
        fast: bool,
        max_n in 1u8..=4,
        buckets in prop_oneof![Just(10_000u32), 2u32..70_000, Just(Featuriser::MAX_BUCKETS)],
        segment_bytes in 0usize..200,
    ) {
        let hash = if fast { NgramHash::Fast } else { NgramHash::Reference };
        // Uni- and bigrams have kernels of their own, and are what nearly everybody uses.
        let max_n = if max_n > 3 { 2 } else { max_n };
        assert_kernels_agree(&Featuriser { hash, max_n, buckets }, &text, segment_bytes);
    }

    #[test]
    fn lower_case_stays_as_it_is(text in awkward_texts()) {
        let (mut once, mut twice) = (String::new(), String::new());
        lowercase_into(&text, &mut once);
        lowercase_into(&once, &mut twice);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn ngrams_are_as_many_as_buckets(text in awkward_texts(), max_n in 1u8..=Featuriser::MAX_N) {
        let featuriser = Featuriser { max_n, ..Featuriser::default() };
        let (n_tokens, buckets) = by_kernel(&featuriser, &text, SEGMENT_BYTES, &mut Scratch::default());
        prop_assert_eq!(featuriser.n_ngrams(n_tokens), buckets.len() as u64);
    }
}

/// More tokens than are remembered, and more new ones than there are numbers for: nothing is taken for something else.
#[test]
fn a_memory_that_runs_full_begins_anew() {
    let featuriser = Featuriser::default();
    let mut scratch = Scratch::default();
    for text in (0..1_200_000u32).collect::<Vec<_>>().chunks(40_000) {
        let text: Vec<String> = text.iter().map(|i| format!("the w{i} of")).collect();
        let text = text.join(" ");
        assert!(by_kernel(&featuriser, &text, SEGMENT_BYTES, &mut scratch) == specification(&featuriser, &text));
    }
}

/// Every character by itself and between letters: lower case and class by the tables, whatever the kernel.
#[test]
fn kernels_agree_on_every_character() {
    let featuriser = Featuriser { max_n: 1, ..Featuriser::with_hash(NgramHash::Fast) };
    let characters: Vec<char> = (0..=0x10FFFF).filter_map(char::from_u32).collect();
    for group in characters.chunks(512) {
        let text: String = group.iter().flat_map(|&c| [c, ' ', 'a', c, 'B', ' ']).collect();
        let expected = specification(&featuriser, &text);
        for kernel in TextKernel::available() {
            let mut scratch = Scratch::with_kernels(kernel, DigestKernel::default());
            assert!(by_kernel(&featuriser, &text, SEGMENT_BYTES, &mut scratch) == expected, "from {:?}", group[0]);
        }
    }
}

/// Memory follows the segments, not the text, also where there is no white space.
#[test]
fn long_texts_are_cut() {
    let mut scratch = Scratch::default();
    for text in ["lorem ipsum dolor ".repeat(20_000), "{\"a\":0.1,\"b\":[]},".repeat(20_000)] {
        let mut largest = 0;
        Featuriser::with_hash(NgramHash::Fast)
            .for_each_chunk(&text, &mut scratch, |chunk| largest = largest.max(chunk.len()));
        assert!((1..2 * SEGMENT_BYTES).contains(&largest), "{largest} buckets at a time");
    }
}

#[test]
fn texts_without_white_space_are_cut_between_classes() {
    for text in ["0.1,".repeat(1 << 20), "a/b".repeat(1 << 18), "x=\"1\";".repeat(1 << 18)] {
        let pieces: Vec<&str> = segments(&text, SEGMENT_BYTES).collect();
        assert!(pieces.iter().all(|piece| piece.len() <= SEGMENT_BYTES + 8), "of {}…", &text[..8]);
        assert!(pieces.concat() == text);
    }
    // White space is where a text is cut as long as it comes soon.
    assert_eq!(segments("1,2,3 4,5", 4).collect::<Vec<_>>(), ["1,2,3 ", "4,5"]);
    assert_eq!(segments("1,2,3,4,5,6,7,8 9", 4).collect::<Vec<_>>(), ["1,2,3", ",4,5,", "6,7,8 ", "9"]);
    // A sigma looks through these at what is behind them, and one token is one token.
    for whole in ["a.b:c'd^e`f".repeat(9), "a".repeat(99), "!?".repeat(50), "é,".repeat(50)] {
        assert_eq!(segments(&whole, 4).collect::<Vec<_>>(), [whole.as_str()]);
    }
}

/// For each two bytes of ASCII between which a text may be cut: its parts have the tokens and the lower case of the whole,
/// whatever else stands there.
#[test]
fn cuts_change_neither_tokens_nor_lower_case() {
    let lower = |text: &str| {
        let mut lowered = String::new();
        lowercase_into(text, &mut lowered);
        lowered
    };
    let tokens = |text: &str| {
        let (lowered, mut tokens) = (lower(text), Vec::new());
        for_each_token(&lowered, |range| tokens.push(lowered[range].to_owned()));
        tokens
    };
    let mut n_cuts = 0;
    for (left, right) in (0..128u8).flat_map(|left| (0..128u8).map(move |right| (left, right))) {
        if !may_cut(left, right) {
            continue;
        }
        n_cuts += 1;
        for before in ["", "Σ", "ΑΣ", "ΑΣ'", "ΑΣ.a"] {
            for after in ["", "Σ", "Σ Α", "'Σ", "a:Σ", "'Α"] {
                let (first, second) = (format!("{before}{}", left as char), format!("{}{after}", right as char));
                let whole = format!("{first}{second}");
                assert_eq!(lower(&first) + &lower(&second), lower(&whole), "{whole:?}");
                assert_eq!([tokens(&first), tokens(&second)].concat(), tokens(&whole), "{whole:?}");
            }
        }
    }
    assert!(n_cuts > 3_000, "{n_cuts} cuts");
}

/// A text that cannot be cut takes many times its size, which must not stay with every thread.
#[test]
fn a_long_text_leaves_no_large_buffers_behind() {
    let text = "é,".repeat(1 << 19);
    for hash in [NgramHash::Reference, NgramHash::Fast] {
        let (featuriser, mut scratch) = (Featuriser::with_hash(hash), Scratch::default());
        let mut largest = 0;
        featuriser.for_each_chunk(&text, &mut scratch, |chunk| largest = largest.max(chunk.len()));
        assert!(largest * size_of::<u32>() > Scratch::KEPT_BYTES, "{largest} buckets at a time");
        assert!(scratch.held_bytes() <= Scratch::KEPT_BYTES, "{} bytes after it", scratch.held_bytes());
        let found = by_kernel(&featuriser, "Select the night", SEGMENT_BYTES, &mut scratch);
        assert_eq!(found, specification(&featuriser, "Select the night"));
        assert_eq!(scratch.last_chunk(), found.1);
        assert!((1..=Scratch::KEPT_BYTES).contains(&scratch.held_bytes()), "{} bytes", scratch.held_bytes());
    }
}
