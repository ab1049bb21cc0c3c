use proptest::prelude::*;

use super::*;

fn documents() -> impl Strategy<Value = Vec<RankedDocument>> {
    // Keys are few, so that many are equal.
    let key = prop_oneof![(-5i32..5).prop_map(f64::from), -5.0f64..5.0];
    proptest::collection::vec((key, 0u32..60), 0..60).prop_map(|all| {
        let of = |(i, (key, n_tokens)): (usize, (f64, u32))| RankedDocument { document: i as u32, key, n_tokens };
        all.into_iter().enumerate().map(of).collect()
    })
}

/// From the words of the module, one document after the other.
fn oracle(documents: &[RankedDocument], budget: f64, uniform: f64) -> Vec<u32> {
    let mut sorted = documents.to_vec();
    sorted.sort_by(|a, b| b.key.partial_cmp(&a.key).unwrap().then(a.document.cmp(&b.document)));
    let available: u64 = documents.iter().map(|of| u64::from(of.n_tokens)).sum();
    let (mut taken, mut sum) = (Vec::new(), 0.0);
    for of in sorted {
        if budget < available as f64 && sum + uniform * f64::from(of.n_tokens) >= budget {
            break;
        }
        sum += f64::from(of.n_tokens);
        taken.push(of.document);
    }
    taken
}

fn numbers(selected: &[RankedDocument]) -> Vec<u32> {
    selected.iter().map(|of| of.document).collect()
}

proptest! {
    #[test]
    fn a_pool_takes_what_the_words_say(documents in documents(), share in 0.0f64..1.2, uniform in 0.001f64..0.999, rotate in 0usize..60) {
        let available: u64 = documents.iter().map(|of| u64::from(of.n_tokens)).sum();
        let budget = share * available as f64;
        let expected = oracle(&documents, budget, uniform);
        let mut turned = documents.clone();
        turned.rotate_left(rotate.min(documents.len()));
        let pool = TokenPool::new(turned, budget, uniform);
        prop_assert_eq!(&numbers(pool.selected()), &expected);
        let sum: u64 = expected.iter().map(|&d| u64::from(documents[d as usize].n_tokens)).sum();
        prop_assert_eq!((pool.selected_tokens(), pool.available()), (sum, available));
        // Within the one document that crosses the end of the budget.
        let longest = documents.iter().map(|of| of.n_tokens).max().unwrap_or(0);
        let reached = budget.min(available as f64);
        prop_assert!((sum as f64 - reached).abs() <= f64::from(longest), "{} tokens of {}", sum, reached);
        prop_assert_eq!(pool.threshold().is_none(), expected.len() == documents.len());
    }

    /// Half of a document: the nearest sum that the best documents can have.
    #[test]
    fn a_half_gives_the_nearest_sum(documents in documents(), share in 0.0f64..1.0) {
        let available: u64 = documents.iter().map(|of| u64::from(of.n_tokens)).sum();
        let budget = (share * available as f64).floor();
        let pool = TokenPool::new(documents, budget, 0.5);
        let nearest = (0..=pool.ranked.len()).map(|n| (pool.before(n) as f64 - budget).abs()).fold(f64::MAX, f64::min);
        prop_assert_eq!((pool.selected_tokens() as f64 - budget).abs(), nearest);
    }

    /// Averaged over evenly spread numbers, the sum is the budget, be it less than a document.
    #[test]
    fn at_random_the_sum_is_the_budget_on_average(documents in documents(), share in 0.0f64..1.0) {
        const DRAWS: u32 = 400;
        let available: u64 = documents.iter().map(|of| u64::from(of.n_tokens)).sum();
        let budget = share * available as f64;
        let sum: u64 = (0..DRAWS).map(|draw| {
            TokenPool::new(documents.clone(), budget, (f64::from(draw) + 0.5) / f64::from(DRAWS)).selected_tokens()
        }).sum();
        let mean = sum as f64 / f64::from(DRAWS);
        prop_assert!((mean - budget).abs() <= 60.0 / f64::from(DRAWS) + 1e-9, "{} instead of {}", mean, budget);
    }

    /// The threshold of a document says what becomes of it with any key of its own, all others being what they are.
    #[test]
    fn a_document_is_selected_exactly_above_its_threshold(
        documents in documents(),
        which in any::<prop::sample::Index>(),
        other_key in -6.0f64..6.0,
        share in 0.0f64..1.1,
        uniform in 0.001f64..0.999,
    ) {
        prop_assume!(!documents.is_empty());
        let available: u64 = documents.iter().map(|of| u64::from(of.n_tokens)).sum();
        let budget = share * available as f64;
        let pool = TokenPool::new(documents.clone(), budget, uniform);
        let mine = documents[which.index(documents.len())];
        let rank = pool.rank(&mine);
        prop_assert_eq!(pool.ranked[rank], mine);
        let threshold = pool.threshold_of(rank);
        let selected_with = |key: f64| {
            let mut others = documents.clone();
            others[mine.document as usize].key = key;
            oracle(&others, budget, uniform).contains(&mine.document)
        };
        // One that is too long for this number is not selected with any key, which its chance says.
        let is_too_long = uniform * f64::from(mine.n_tokens) >= budget && budget < available as f64;
        for key in [mine.key, other_key] {
            // Of equal keys the lower number is before: no noise makes any.
            if documents.iter().all(|of| of.key != key || of.document == mine.document) {
                let beats = threshold.is_none_or(|threshold| key > threshold) && !is_too_long;
                prop_assert_eq!(selected_with(key), beats, "{} against {:?}", key, threshold);
            }
        }
        prop_assert!((0.0..=1.0).contains(&pool.chance(mine.n_tokens)));
    }

    #[test]
    fn budgets_fill_what_there_is(parts in proptest::collection::vec((prop_oneof![Just(0.0), 0.01f64..1.0], 0u64..5_000), 1..8), total in 0.0f64..20_000.0) {
        let (shares, available): (Vec<f64>, Vec<u64>) = parts.into_iter().unzip();
        let budgets = token_budgets(total, &shares, &available);
        let all: u64 = available.iter().sum();
        prop_assert!((budgets.iter().sum::<f64>() - total.min(all as f64)).abs() < 1e-6, "{:?} of {}", budgets, total);
        prop_assert!(budgets.iter().zip(&available).all(|(budget, of)| *budget <= *of as f64 && *budget >= 0.0));
        // Those that are not full are in proportion to their shares.
        let open: Vec<usize> = (0..shares.len()).filter(|&i| budgets[i] > 0.0 && budgets[i] < available[i] as f64 && shares[i] > 0.0).collect();
        for pair in open.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|i| budgets[i] / shares[i]);
            prop_assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{:?} by {:?}", budgets, shares);
        }
    }
}

/// Weighted by the inverse of their inclusion probabilities, selected documents stand for all: long ones and budgets of less than one
/// document among them.
#[test]
fn sums_over_a_selection_are_unbiased() {
    let lengths = [5u32, 40, 7, 90, 3, 11, 25, 8];
    let weights = [0.5f64, -0.3, 1.2, 0.1, -1.0, 0.7, 0.0, 0.4];
    let wanted: f64 = lengths.iter().map(|n| f64::from(*n)).sum();
    for budget in [30.0, 70.0] {
        const DRAWS: u64 = 60_000;
        let (mut estimates, mut documents) = (0.0, 0.0);
        for draw in 0..DRAWS {
            let noise = crate::select::Noise::new(draw, &crate::record::TopicPartition::new("t", 0));
            let of = |i: usize| RankedDocument {
                document: i as u32,
                key: weights[i] + noise.gumbel(i as i64),
                n_tokens: lengths[i],
            };
            let pool = TokenPool::new((0..lengths.len()).map(of).collect(), budget, noise.rounding(0));
            for (rank, of) in pool.selected().iter().enumerate() {
                let threshold = pool.threshold_of(rank);
                let weight = weights[of.document as usize];
                let above = threshold.map_or(1.0, |threshold| -(-(weight - threshold).exp()).exp_m1());
                estimates += f64::from(of.n_tokens) / (above * pool.chance(of.n_tokens));
                documents += 1.0 / (above * pool.chance(of.n_tokens));
            }
        }
        let (tokens, documents) = (estimates / DRAWS as f64, documents / DRAWS as f64);
        assert!((tokens - wanted).abs() < 0.03 * wanted, "{tokens} tokens of {wanted} for a budget of {budget}");
        assert!((documents - 8.0).abs() < 0.25, "{documents} documents of 8 for a budget of {budget}");
    }
}

#[test]
fn fractions_of_tokens_are_exact() {
    let fraction = |text: &str| text.parse::<Fraction>().unwrap();
    assert_eq!(fraction("0.29").of_tokens(100), 29.0);
    assert_eq!(fraction("1").of_tokens(12_345), 12_345.0);
    assert_eq!(fraction("0.25").of_tokens(10), 2.5);
    assert_eq!(
        (serde_json::to_string(&Unit::Tokens).unwrap(), Unit::Tokens.to_string()),
        ("\"tokens\"".into(), "tokens".into())
    );
}
