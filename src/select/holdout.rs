//! Which documents are held out of training, so that a trainer can be judged by them.

use sha2::{Digest, Sha256};

use super::Fraction;

/// A share of all ids. Whether a document is held out follows from its id alone: neither the seed, nor where or when it came, nor who
/// decided it. The first eight bytes of the SHA-256 of the id, as a big-endian integer, are below share · 2⁶⁴; so whoever has the id can
/// tell, and what a smaller share holds out a larger one does as well.
pub fn is_held_out(id: &str, share: Fraction) -> bool {
    let digest = Sha256::digest(id);
    let first = digest.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    share.contains(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> Fraction {
        text.parse().unwrap()
    }

    /// Golden, by `hashlib.sha256(id.encode()).digest()[:8]`: which side an id is on never changes.
    #[test]
    fn an_id_is_always_on_the_same_side() {
        // ba7816bf8f01cfea, of "abc", is 0.7283950… of 2⁶⁴.
        assert!(!is_held_out("abc", share("0.7283")) && is_held_out("abc", share("0.7284")));
        // e3b0c44298fc1c14, of nothing, is 0.8894…
        assert!(!is_held_out("", share("0.8894")) && is_held_out("", share("0.8895")));
        assert!((0..1000).all(|n| is_held_out(&format!("d{n}"), share("1"))));
    }

    #[test]
    fn a_share_is_kept_and_larger_shares_hold_out_what_smaller_ones_do() {
        let held = |share: Fraction| (0..100_000).filter(move |n| is_held_out(&format!("documents/{n}"), share));
        let (few, more): (Vec<i32>, Vec<i32>) = (held(share("0.01")).collect(), held(share("0.1")).collect());
        // Five standard errors: 157 and 474.
        assert!((843..1157).contains(&few.len()) && (9_526..10_474).contains(&more.len()));
        assert!(few.iter().all(|n| more.contains(n)));
    }
}
