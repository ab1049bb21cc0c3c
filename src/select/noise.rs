//! Noise by position: the same (seed, topic, partition, offset) always gives the same number, on every worker.
//!
//! A counter-based generator, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
//! keyed by a digest of (seed, topic, partition) and counted by the offset.

use sha2::{Digest, Sha256};

use crate::record::TopicPartition;

/// The noise of one partition.
#[derive(Debug, Clone)]
pub struct Noise {
    key: [u32; 2],
    /// The upper half of the counter: more of the digest, so that partitions do not share streams by a clash of keys.
    salt: u32,
}

/// What a number is for: different uses of one offset must not share noise.
#[derive(Clone, Copy)]
enum Use {
    Gumbel = 0,
    Rounding = 1,
    Baseline = 2,
    Sampling = 3,
    PoolRounding = 4,
    TargetRounding = 5,
    Priority = 6,
    Shuffle = 7,
    Measuring = 8,
    Comparing = 9,
    StratumRounding = 10,
    TargetStart = 11,
}

impl Noise {
    pub fn new(seed: u64, at: &TopicPartition) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update((at.topic.len() as u64).to_le_bytes())
            .chain_update(at.topic.as_bytes())
            .chain_update(at.partition.to_le_bytes())
            .finalize();
        let word =
            |i: usize| u32::from_le_bytes([digest[4 * i], digest[4 * i + 1], digest[4 * i + 2], digest[4 * i + 3]]);
        Noise { key: [word(0), word(1)], salt: word(2) }
    }

    /// A standard Gumbel number, `-ln(-ln u)`: finite, at most 37.5.
    pub fn gumbel(&self, offset: i64) -> f64 {
        -(-self.uniform(offset, Use::Gumbel).ln()).ln()
    }

    /// A number in (0, 1) that decides how the size of the window from this offset is rounded.
    pub fn rounding(&self, from_offset: i64) -> f64 {
        self.uniform(from_offset, Use::Rounding)
    }

    /// A number in (0, 1) that decides how the shares of sources in the window from this offset are rounded.
    pub fn pool_rounding(&self, from_offset: i64) -> f64 {
        self.uniform(from_offset, Use::PoolRounding)
    }

    /// The same for the shares of targets in a pool, another number for each pool.
    pub fn target_rounding(&self, from_offset: i64, pool: usize) -> f64 {
        self.numbered(from_offset, Use::TargetRounding, pool as u32)
    }

    /// The same for the budgets of the strata of a pool.
    pub fn stratum_rounding(&self, from_offset: i64, pool: usize) -> f64 {
        self.numbered(from_offset, Use::StratumRounding, pool as u32)
    }

    /// A number in (0, 1) that decides at which of them the targets begin to divide them.
    pub fn target_start(&self, from_offset: i64, pool: usize) -> f64 {
        self.numbered(from_offset, Use::TargetStart, pool as u32)
    }

    /// Whether a document belongs to a random sample of this share, which a selection is compared with. Independent of
    /// its Gumbel number, so of whether it is selected.
    pub fn in_baseline(&self, offset: i64, share: f64) -> bool {
        self.uniform(offset, Use::Baseline) < share
    }

    /// A number in (0, 1) that decides whether this position belongs to a uniform sample: it does below a threshold.
    pub fn sampling(&self, offset: i64) -> f64 {
        self.uniform(offset, Use::Sampling)
    }

    /// A number in (0, 1) by which the scores of a priority sample are divided.
    pub fn priority(&self, offset: i64) -> f64 {
        self.uniform(offset, Use::Priority)
    }

    /// The place of a row among those of its shard, which stand in ascending order of it: 128 bits, so that no two rows share one.
    pub fn shuffle(&self, offset: i64) -> u128 {
        self.bits(offset, Use::Shuffle, 0).into_iter().fold(0, |key, word| key << 32 | u128::from(word))
    }

    /// A number in (0, 1) that decides whether it is measured what the window from this offset covers.
    pub fn measuring(&self, from_offset: i64) -> f64 {
        self.uniform(from_offset, Use::Measuring)
    }

    /// A number in (0, 1) that decides which selected documents stand for all when that is measured. Independent of
    /// [`Noise::sampling`], which decides what they are compared with.
    pub fn comparing(&self, offset: i64) -> f64 {
        self.uniform(offset, Use::Comparing)
    }

    fn uniform(&self, offset: i64, usage: Use) -> f64 {
        self.numbered(offset, usage, 0)
    }

    /// Uniform on the odd multiples of 2⁻⁵³: never 0, never 1. `number` (below 2²⁴) tells several of one use apart.
    fn numbered(&self, offset: i64, usage: Use, number: u32) -> f64 {
        let [a, b, ..] = self.bits(offset, usage, number);
        let bits = (u64::from(b) << 32 | u64::from(a)) >> 12;
        (2 * bits + 1) as f64 * (-53f64).exp2()
    }

    fn bits(&self, offset: i64, usage: Use, number: u32) -> [u32; 4] {
        philox4x32_10([offset as u32, (offset >> 32) as u32, usage as u32 | number << 8, self.salt], self.key)
    }
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that accompany the authors' library.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32_10([!0; 4], [!0; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox4x32_10(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    /// Golden: published selections can only be replayed while these numbers stay.
    #[test]
    fn noise_of_a_position_never_changes() {
        let noise = Noise::new(42, &TopicPartition::new("documents", 3));
        let seen = [0, 1, 4_294_967_296].map(|offset| noise.gumbel(offset));
        assert_eq!(seen, GOLDEN_GUMBEL, "the noise of positions changed");
    }

    const GOLDEN_GUMBEL: [f64; 3] = [1.1686261284078026, -0.09417354373939052, 5.39991712475162];

    #[test]
    fn positions_seeds_and_uses_differ() {
        let at = TopicPartition::new("documents", 3);
        let noise = Noise::new(1, &at);
        assert_ne!(noise.gumbel(0), noise.gumbel(1));
        assert_ne!(noise.gumbel(0), Noise::new(2, &at).gumbel(0));
        assert_ne!(noise.gumbel(0), Noise::new(1, &TopicPartition::new("documents", 4)).gumbel(0));
        assert_ne!(noise.gumbel(0), Noise::new(1, &TopicPartition::new("document", 3)).gumbel(0));
        let mut uses = [Use::Gumbel, Use::Rounding, Use::Baseline, Use::Sampling, Use::Priority]
            .map(|usage| noise.uniform(7, usage))
            .to_vec();
        uses.push(noise.pool_rounding(7));
        uses.extend((0..300).map(|pool| noise.target_rounding(7, pool)));
        uses.extend((0..300).map(|pool| noise.stratum_rounding(7, pool)));
        uses.extend((0..300).map(|pool| noise.target_start(7, pool)));
        uses.sort_by(f64::total_cmp);
        uses.dedup();
        assert_eq!(uses.len(), 6 + 3 * 300);
    }

    #[test]
    fn a_baseline_has_its_share_and_does_not_know_the_gumbel_numbers() {
        let noise = Noise::new(5, &TopicPartition::new("t", 0));
        let n = 100_000;
        let (mut sampled, mut gumbels) = (0, 0.0);
        for offset in (0..n).filter(|&offset| noise.in_baseline(offset, 0.1)) {
            sampled += 1;
            gumbels += noise.gumbel(offset);
        }
        // Five standard errors: of a sum of Bernoulli(0.1) 474, of a mean of 10,000 Gumbel numbers 0.064.
        assert!((9_526..10_474).contains(&sampled), "{sampled}");
        assert!((gumbels / f64::from(sampled) - 0.577_215_66).abs() < 0.064);
        assert!((0..n).all(|offset| noise.in_baseline(offset, 1.0)));
    }

    /// Golden as well: the rows of published shards stand in this order.
    #[test]
    fn the_order_of_rows_never_changes_and_knows_nothing_of_the_selection() {
        let noise = Noise::new(42, &TopicPartition::new("documents", 3));
        assert_eq!([0, 1, 4_294_967_296].map(|offset| (noise.shuffle(offset) >> 64) as u64), GOLDEN_SHUFFLE);
        // Ranks of both numbers of a position: five standard errors of their correlation are 0.05.
        let n = 10_000;
        let ranks = |of: &dyn Fn(i64) -> f64| {
            let mut order: Vec<i64> = (0..n).collect();
            order.sort_by(|a, b| of(*a).total_cmp(&of(*b)));
            let mut ranks = vec![0.0; n as usize];
            order.iter().enumerate().for_each(|(rank, offset)| ranks[*offset as usize] = rank as f64 / n as f64 - 0.5);
            ranks
        };
        let by_shuffle = ranks(&|offset| noise.shuffle(offset) as f64);
        for other in [ranks(&|offset| noise.gumbel(offset)), ranks(&|offset| offset as f64)] {
            let covariance = by_shuffle.iter().zip(&other).map(|(a, b)| a * b).sum::<f64>() / n as f64;
            assert!((covariance * 12.0).abs() < 0.05, "{covariance}");
        }
    }

    const GOLDEN_SHUFFLE: [u64; 3] = [0x10a8_8b27_0e9b_b67b, 0x2bbe_7f6c_f0d2_f6e4, 0x998a_5b77_5bb9_94fd];

    #[test]
    fn gumbel_has_the_right_mean_and_variance() {
        let noise = Noise::new(7, &TopicPartition::new("t", 0));
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|i| noise.gumbel(i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n as f64;
        // Euler's constant and pi² / 6; five standard errors are 0.0143 and 0.038.
        assert!((mean - 0.577_215_66).abs() < 0.0143, "mean {mean}");
        assert!((variance - std::f64::consts::PI.powi(2) / 6.0).abs() < 0.038, "variance {variance}");
    }
}
