//! Four bytes of settings and a text: all kernels of this processor find the tokens and buckets of the specification, wherever the text
//! begins in memory and wherever it is cut.

#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use winnowd::features::{DigestKernel, Featuriser, NgramHash, Scratch, TextKernel, for_each_token, lowercase_into};

#[path = "../../../src/features/tests/specification.rs"]
mod specification;

const MAX_N: [u8; 8] = [2, 2, 2, 2, 1, 3, 5, Featuriser::MAX_N];
const BUCKETS: [u32; 4] = [10_000, 2, 65_537, Featuriser::MAX_BUCKETS];

type Kernels = (TextKernel, DigestKernel);

thread_local! {
    /// One for every pair of kernels and number of buckets, with what the texts before left there.
    static SCRATCHES: RefCell<BTreeMap<u32, Vec<(Kernels, Scratch)>>> = const { RefCell::new(BTreeMap::new()) };
}

fn scratches() -> Vec<(Kernels, Scratch)> {
    let texts = TextKernel::available().into_iter();
    let pairs = texts.flat_map(|text| DigestKernel::available().into_iter().map(move |digest| (text, digest)));
    pairs.map(|(text, digest)| ((text, digest), Scratch::with_kernels(text, digest))).collect()
}

fn found(featuriser: &Featuriser, text: &str, segment_bytes: usize, scratch: &mut Scratch) -> (u32, Vec<u32>) {
    let mut buckets = Vec::new();
    let take = |chunk: &[u32]| buckets.extend_from_slice(chunk);
    let n_tokens = match segment_bytes {
        0 => featuriser.for_each_chunk(text, scratch, take),
        _ => featuriser.for_each_chunk_of_segments(text, segment_bytes, scratch, take),
    };
    (n_tokens, buckets)
}

fuzz_target!(|input: &[u8]| {
    let Some((&[before, segment_bytes, settings, buckets], bytes)) = input.split_first_chunk() else { return };
    let before = usize::from(before % 64);
    let hash = if settings & 1 == 0 { NgramHash::Reference } else { NgramHash::Fast };
    let max_n = MAX_N[usize::from(settings >> 1) % MAX_N.len()];
    let featuriser = Featuriser { hash, max_n, buckets: BUCKETS[usize::from(buckets) % BUCKETS.len()] };
    let aligned = " ".repeat(before) + &String::from_utf8_lossy(bytes);
    let text = &aligned[before..];
    let expected = specification::specification(&featuriser, text);
    SCRATCHES.with_borrow_mut(|all| {
        for ((text_kernel, digest_kernel), scratch) in all.entry(featuriser.buckets).or_insert_with(scratches) {
            let name = format!("text {}, digests {}", text_kernel.as_str(), digest_kernel.as_str());
            // Also uncut, and with what the first time left there.
            for segment_bytes in [segment_bytes, 0] {
                let remembering = found(&featuriser, text, segment_bytes.into(), scratch);
                if remembering != expected {
                    let fresh = &mut Scratch::with_kernels(*text_kernel, *digest_kernel);
                    let fresh = found(&featuriser, text, segment_bytes.into(), fresh);
                    let whose = if fresh == expected { "after the texts before it alone" } else { "by itself" };
                    panic!("{name}, {featuriser:?}, {segment_bytes}, {whose}: {remembering:?}, expected {expected:?}: {text:?}");
                }
            }
        }
    });
});
