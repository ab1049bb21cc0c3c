//! Windows whose fraction is one of tokens, beside the pure selection.

use std::convert::Infallible;

use super::*;
use crate::select::{RankedDocument, TokenPool, Unit, token_budgets};

proptest! {
    /// Budgets are of all documents, those that cannot be selected among them; what is selected is what the pools of the pure selection give.
    #[test]
    fn a_window_in_tokens_selects_its_share_of_them(
        texts in proptest::collection::vec(("(good |bad |noise ){1,12}", proptest::option::of(1u32..40)), 0..20),
        has_pools in any::<bool>(),
        tenths in 1u32..=10,
    ) {
        let model = model();
        let weight = weight(&model);
        let selector = SelectorSettings { unit: Unit::Tokens, ..selector(&format!("{}.{}", tenths / 10, tenths % 10)) };
        let shares = if has_pools { vec![("s1".to_owned(), 0.5)] } else { vec![] };
        let quotas = Quotas { sources: shares.into_iter().collect(), ..Quotas::default() };
        let at = TopicPartition::new("docs", 1);
        let noise = Noise::new(selector.seed, &at);
        let division = Arc::new(Division::of(&quotas, &model));
        let mut window = OpenWindow::new(at, 100, &policy(), &selector, opening(&division));
        let (mut rows, mut all, mut pools) = (Vec::new(), 0, vec![Vec::new(); division.n_pools()]);
        let mut totals = Vec::new();
        for (offset, (text, counted)) in (100..).zip(&texts) {
            let mut record = record(offset, text, &model);
            let scored = record.outcome.as_mut().unwrap();
            scored.score.counted_tokens = *counted;
            let n_tokens = counted.unwrap_or(scored.score.n_tokens);
            all += u64::from(n_tokens);
            if scored.score.n_tokens >= selector.min_tokens {
                let total = selector.total_log_weight(&scored.score, &model.featuriser);
                let key = selector.key(&noise, offset, total);
                let pool = usize::from(has_pools && offset % 3 == 1);
                pools[pool].push(RankedDocument { document: totals.len() as u32, key, n_tokens });
                totals.push((offset, total));
            }
            rows.extend(window.push(record, &weight, &selector, &noise));
        }
        prop_assert_eq!(rows.len(), totals.len());
        prop_assert!(window.might_select(f64::MIN) && window.is_divided());
        let mut kept = Vec::new();
        let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
            kept = numbers.iter().map(|number| rows[*number as usize].clone()).collect();
            kept.iter().for_each(look);
            Ok(())
        };
        let target = model.target_distribution();
        let Ok(closed) = window.close_with(CloseReason::Idle, &selector, &noise, &target, show);
        let joined = closed.waiting.iter().zip(kept).map(|(decision, row)| decision.of(row, &selector));
        let found: Vec<_> =
            joined.map(|row| (row.offset, row.selection_key, row.inclusion_probability, row.document.id)).collect();

        let sum = |pool: &Vec<RankedDocument>| pool.iter().map(|of| u64::from(of.n_tokens)).sum();
        let available: Vec<u64> = pools.iter().map(sum).collect();
        let shares = if has_pools { vec![0.5, 0.5] } else { vec![1.0] };
        let budgets = token_budgets(selector.fraction.of_tokens(all), &shares, &available);
        let mut expected = Vec::new();
        prop_assert_eq!(closed.summary.turns.len(), pools.len());
        for ((pool, budget), turn) in pools.into_iter().zip(budgets).zip(&closed.summary.turns) {
            let pool = TokenPool::new(pool, budget, noise.rounding(100));
            for (rank, of) in pool.selected().iter().enumerate() {
                let (offset, total) = totals[of.document as usize];
                let probability = pool.inclusion_probability(&selector, total, rank);
                prop_assert!(probability > 0.0 && probability <= 1.0);
                expected.push((offset, of.key, probability, offset.to_string()));
            }
            let tokens = turn.tokens.unwrap();
            prop_assert_eq!((tokens.budget, tokens.candidates), (pool.budget(), pool.available()));
            prop_assert_eq!((tokens.selected, turn.n_selected), (pool.selected_tokens(), pool.selected().len() as u64));
            prop_assert_eq!(turn.threshold, pool.threshold());
        }
        expected.sort_by_key(|of| of.0);
        prop_assert_eq!(&found, &expected);
        // What is recorded is read back to the last bit.
        let json = serde_json::to_string(&closed.summary).unwrap();
        prop_assert_eq!(serde_json::from_str::<WindowSummary>(&json).unwrap(), closed.summary);
    }
}
