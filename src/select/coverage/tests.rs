use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::features::Featuriser;
use crate::record::TopicPartition;
use crate::score::{Model, NgramCounts, Side, Target};
use crate::select::budget::{split_among_targets, split_among_targets_from};
use crate::select::{Division, Noise, Pick, Quotas, Rounding, Schedule, SelectorKind, apportion, budgets};

/// A document: its pool, scores that are whole numbers (so that the oracle can do without rounding), and its log weight.
#[derive(Debug, Clone)]
struct Doc {
    pool: usize,
    cutoff: i64,
    importance: i64,
    weight: f64,
}

#[derive(Debug, Clone)]
struct Window {
    documents: Vec<Doc>,
    /// Importances are whole multiples of this power of two.
    unit: f64,
    count: u64,
    pool_shares: Vec<f64>,
    target_shares: Vec<f64>,
    settings: CoverageSettings,
    seed: u64,
}

fn selector() -> SelectorSettings {
    SelectorSettings {
        kind: SelectorKind::ImportanceResampling,
        fraction: "1".parse().unwrap(),
        unit: Default::default(),
        temperature: 1.5,
        length_normalise: false,
        min_tokens: 0,
        seed: 0,
        quotas: Quotas::default(),
        loss: None,
        filter: None,
        holdout: None,
        coverage_sample: 0,
        coverage: None,
        sensitivity: None,
    }
}

impl Window {
    fn key(&self, document: u32, target: usize) -> f64 {
        let noise = Noise::new(self.seed, &TopicPartition::new("t", 0));
        selector().key(&noise, document.into(), self.total_weight(document, target))
    }

    fn total_weight(&self, document: u32, target: usize) -> f64 {
        match self.settings.within {
            Within::Uniform => 0.0,
            Within::Weighted => self.documents[document as usize].weight * (1.0 - target as f64),
        }
    }

    fn division(&self) -> Arc<Division> {
        let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
        let one = Model::of_one_target(Featuriser { buckets: 2, ..Featuriser::default() }, side(), side()).unwrap();
        let named = |shares: &[f64], from: usize| -> BTreeMap<String, f64> {
            shares.iter().enumerate().skip(from).map(|(i, share)| (format!("p{i}"), *share)).collect()
        };
        let targets = named(&self.target_shares, 0);
        let targets = targets.into_iter().map(|(name, proportion)| Target { name, proportion, side: side() }).collect();
        let quotas = Quotas { sources: named(&self.pool_shares, 1), ..Quotas::default() };
        let division = Division::of(&quotas, &Model { targets, ..one });
        assert_eq!((division.n_pools(), division.target_shares()), (self.pool_shares.len(), &self.target_shares[..]));
        Arc::new(division)
    }

    fn pools(&self) -> Vec<Vec<u32>> {
        let mut pools = vec![Vec::new(); self.pool_shares.len()];
        self.documents.iter().enumerate().for_each(|(i, d)| pools[d.pool % self.pool_shares.len()].push(i as u32));
        pools
    }

    /// As files are.
    fn select_from(&self, pools: Vec<Vec<u32>>) -> Covered {
        self.select_rounded(pools, BudgetRounding::Nearest, StrataRounding::Down)
    }

    fn select_rounded(
        &self,
        pools: Vec<Vec<u32>>,
        rounding: BudgetRounding<'_>,
        strata_rounding: StrataRounding,
    ) -> Covered {
        let request = CoverageRequest {
            count: self.count,
            settings: self.settings,
            pool_shares: &self.pool_shares,
            target_shares: &self.target_shares,
            rounding,
            strata_rounding,
        };
        let of = |document: u32| &self.documents[document as usize];
        let scores = DocumentScores {
            cutoff: &|document| of(document).cutoff as f64,
            importance: &|document| of(document).importance as f64 * self.unit,
            key: &|document, target| self.key(document, target),
        };
        select_coverage(&request, pools, &scores)
    }
}

/// The formulas of the paper with the mended edge cases, in whole numbers, one document at a time.
struct Oracle<'a>(&'a Window);

#[derive(Debug, PartialEq, Default)]
struct Expected {
    cut: Vec<u32>,
    /// Document, target and key.
    picks: Vec<(u32, usize, f64)>,
    /// Of every pool: sizes and budgets of its strata.
    strata: Vec<Vec<(u64, u64)>>,
}

impl Oracle<'_> {
    fn select(&self) -> Expected {
        let mut expected = Expected::default();
        let mut left: Vec<u32> = (0..self.0.documents.len() as u32).collect();
        if let Some(cutoff) = self.0.settings.cutoff {
            let sign = if cutoff.tail == Tail::Low { 1 } else { -1 };
            let mut ranked = left.clone();
            ranked.sort_by_key(|&d| (sign * self.0.documents[d as usize].cutoff, -i64::from(d)));
            let n_cut = (left.len() as u64 * per_mille(cutoff.rate) / 1000) as usize;
            expected.cut = ranked[..n_cut].to_vec();
            expected.cut.sort_unstable();
            left.retain(|d| !expected.cut.contains(d));
        }
        let n_pools = self.0.pool_shares.len();
        let of_pool = |pool| left.iter().copied().filter(move |&d| self.0.documents[d as usize].pool % n_pools == pool);
        let sizes: Vec<u64> = (0..n_pools).map(|pool| of_pool(pool).count() as u64).collect();
        let Window { count, pool_shares, target_shares, .. } = self.0;
        let budgets = budgets(*count, pool_shares, target_shares, &sizes, BudgetRounding::Nearest);
        assert_are_due(&budgets, *count, pool_shares, target_shares, &sizes);
        for (pool, of_targets) in budgets.into_iter().enumerate() {
            self.select_from_pool(&of_pool(pool).collect::<Vec<_>>(), &of_targets, &mut expected);
        }
        expected.picks.sort_by_key(|pick| pick.0);
        expected
    }

    fn select_from_pool(&self, documents: &[u32], of_targets: &[u64], expected: &mut Expected) {
        let k = self.0.settings.strata as usize;
        let importance = |d: &u32| self.0.documents[*d as usize].importance;
        let mut sorted: Vec<i64> = documents.iter().map(importance).collect();
        sorted.sort_unstable();
        let beyond = (self.0.settings.clip * sorted.len().saturating_sub(1) as f64).round() as usize;
        let ends = |beyond: usize| (sorted.get(beyond).copied(), sorted.iter().rev().nth(beyond).copied());
        let (low, high) = if ends(beyond).0 == ends(beyond).1 { ends(0) } else { ends(beyond) };
        let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
        let stratum = |d: &u32| match importance(d).clamp(low, high) {
            _ if low == high => 0,
            score => (((score - low) as i128 * k as i128) / (high - low) as i128).min(k as i128 - 1) as usize,
        };
        let members: Vec<Vec<u32>> =
            (0..k).map(|j| documents.iter().copied().filter(|d| stratum(d) == j).collect()).collect();
        // Strata are taken away one by one, the smallest first.
        let mut budgets = vec![0; k];
        let mut open: Vec<usize> = (0..k).collect();
        let mut left_to_targets = of_targets.to_vec();
        let mut rest: u64 = of_targets.iter().sum();
        while !open.is_empty() {
            let smallest = *open.iter().min_by_key(|&&j| (members[j].len(), j)).unwrap();
            budgets[smallest] = (rest / open.len() as u64).min(members[smallest].len() as u64);
            rest -= budgets[smallest];
            open.retain(|&j| j != smallest);
        }
        for ((mut members, parts), budget) in
            members.iter().cloned().zip(split_among_targets(&budgets, of_targets)).zip(&budgets)
        {
            assert_eq!(parts.iter().sum::<u64>(), *budget);
            for (target, n) in parts.into_iter().enumerate() {
                left_to_targets[target] -= n;
                members.sort_by(|&a, &b| self.0.key(b, target).total_cmp(&self.0.key(a, target)).then(a.cmp(&b)));
                let taken: Vec<u32> = members.drain(..n as usize).collect();
                expected.picks.extend(taken.into_iter().map(|d| (d, target, self.0.key(d, target))));
            }
        }
        assert!(left_to_targets.iter().all(|left| *left == 0), "{left_to_targets:?} not given to any stratum");
        expected.strata.push(members.iter().map(|m| m.len() as u64).zip(budgets).collect());
    }
}

/// Budgets of pools and targets by their definition: of each pool λ times its share, but no more than it has, with the one λ
/// by which they come to the count; rounded to largest remainders. Targets have their shares of that.
fn assert_are_due(budgets: &[Vec<u64>], count: u64, pool_shares: &[f64], target_shares: &[f64], sizes: &[u64]) {
    let of_pools: Vec<u64> = budgets.iter().map(|of_targets| of_targets.iter().sum()).collect();
    let total = count.min(sizes.iter().sum());
    // Pools without a share get what those with one leave, by their sizes.
    let has_share = |i: &usize| pool_shares[*i] > 0.0;
    let (with, without): (Vec<usize>, Vec<usize>) = (0..sizes.len()).partition(has_share);
    let of_with = total.min(with.iter().map(|&i| sizes[i]).sum());
    assert_are_shares(of_with, &of(&with, pool_shares), &of(&with, sizes), &of(&with, &of_pools));
    let in_proportion: Vec<f64> = without.iter().map(|&i| sizes[i] as f64).collect();
    assert_are_shares(total - of_with, &in_proportion, &of(&without, sizes), &of(&without, &of_pools));
    let of_targets: Vec<u64> = (0..target_shares.len()).map(|t| budgets.iter().map(|of| of[t]).sum()).collect();
    assert_are_shares(total, target_shares, &vec![total; target_shares.len()], &of_targets);
}

fn of<T: Copy>(numbers: &[usize], values: &[T]) -> Vec<T> {
    numbers.iter().map(|&i| values[i]).collect()
}

fn assert_are_shares(total: u64, shares: &[f64], available: &[u64], parts: &[u64]) {
    const NEAR: f64 = 1e-6;
    assert_eq!(parts.iter().sum::<u64>(), total);
    let due = |level: f64, i: usize| (level * shares[i]).min(available[i] as f64);
    let sum = |level: f64| (0..shares.len()).map(|i| due(level, i)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1e12);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        *if sum(middle) < total as f64 { &mut low } else { &mut high } = middle;
    }
    let above = |i: usize| parts[i] as f64 - due(high, i);
    for i in 0..shares.len() {
        assert!(above(i).abs() < 1.0 + NEAR, "{parts:?} for {shares:?} of {available:?}: {} is due", due(high, i));
        for j in 0..shares.len() {
            // No one is rounded up before another one with more left over.
            let (up, down) = (above(i) > NEAR, above(j) < -NEAR);
            assert!(!(up && down) || above(i) - 1.0 <= above(j) + NEAR, "{parts:?} for {shares:?} of {available:?}");
        }
    }
}

fn per_mille(fraction: Fraction) -> u64 {
    fraction.of(1000, 1.0)
}

fn importances() -> impl Strategy<Value = Vec<i64>> {
    prop_oneof![
        proptest::collection::vec(0i64..1000, 0..60),
        // All below zero; whole numbers as of forgetting; all equal, also 0; one outlier.
        proptest::collection::vec(-500i64..0, 0..60),
        proptest::collection::vec(0i64..4, 0..60),
        (-2i64..3, 0usize..40).prop_map(|(score, n)| vec![score; n]),
        (proptest::collection::vec(0i64..20, 0..60), any::<bool>()).prop_map(|(mut scores, is_low)| {
            scores.push(if is_low { -1_000_000 } else { 1_000_000 });
            scores
        }),
    ]
}

fn settings() -> impl Strategy<Value = CoverageSettings> {
    let cutoff = (0u32..1000, any::<bool>()).prop_map(|(rate, is_low)| {
        let rate = format!("0.{rate:03}").parse().ok()?;
        Some(Cutoff { rate, tail: if is_low { Tail::Low } else { Tail::High } })
    });
    let clip = prop_oneof![Just(0.0), Just(DEFAULT_CLIP), 0.0f64..0.45];
    (1u32..60, prop_oneof![Just(None), cutoff], any::<bool>(), clip).prop_map(|(strata, cutoff, is_uniform, clip)| {
        let within = if is_uniform { Within::Uniform } else { Within::Weighted };
        CoverageSettings { strata, cutoff, within, clip }
    })
}

fn window() -> impl Strategy<Value = Window> {
    let documents = importances().prop_flat_map(|importances| {
        let n = importances.len();
        let others = proptest::collection::vec((0usize..3, -9i64..9, -3i32..3), n..=n);
        (Just(importances), others).prop_map(|(importances, others)| {
            let document = |(importance, (pool, cutoff, weight)): (i64, (usize, i64, i32))| Doc {
                pool,
                cutoff,
                importance,
                weight: f64::from(weight) / 2.0,
            };
            importances.into_iter().zip(others).map(document).collect::<Vec<_>>()
        })
    });
    let pool_shares = prop_oneof![Just(vec![1.0]), Just(vec![0.2, 0.5, 0.3]), Just(vec![0.0, 1.0])];
    let target_shares = prop_oneof![Just(vec![1.0]), Just(vec![0.7, 0.3])];
    (documents, -60i32..60, 0u64..70, pool_shares, target_shares, settings(), any::<u64>()).prop_map(
        |(documents, exponent, count, pool_shares, target_shares, settings, seed)| {
            let unit = f64::from(exponent).exp2();
            Window { documents, unit, count, pool_shares, target_shares, settings, seed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn it_is_what_the_formulas_say(window in window()) {
        let covered = window.select_from(window.pools());
        let expected = Oracle(&window).select();
        let picks: Vec<_> = covered.selection.picks.iter().map(|p| (p.document, p.target, p.key)).collect();
        let strata: Vec<Vec<_>> =
            covered.pools.iter().map(|pool| pool.strata.iter().map(|s| (s.documents, s.budget)).collect()).collect();
        prop_assert_eq!(&Expected { cut: covered.cut.clone(), picks, strata }, &expected);

        let available = window.documents.len() - covered.cut.len();
        prop_assert_eq!(covered.selection.picks.len() as u64, window.count.min(available as u64));
        prop_assert_eq!(covered.shortfall, window.count.saturating_sub(available as u64));
        let occupied = (
            expected.strata.iter().flatten().filter(|(documents, _)| *documents > 0).count() as u64,
            expected.strata.iter().flatten().filter(|(_, budget)| *budget > 0).count() as u64,
        );
        prop_assert_eq!(covered.occupied(), occupied);
    }
}

proptest! {
    #[test]
    fn the_order_of_the_documents_does_not_matter(window in window(), rotate in 0usize..60) {
        let mut pools = window.pools();
        pools.iter_mut().for_each(|pool| {
            let middle = rotate.min(pool.len());
            pool.rotate_left(middle);
        });
        prop_assert_eq!(window.select_from(pools), window.select_from(window.pools()));
    }

    /// A document is selected exactly if its key beats a threshold of its stratum. Its probability is the chance of
    /// that where one target chooses, and no higher where several compete for it.
    #[test]
    fn probabilities_are_those_of_the_draw(window in window()) {
        let covered = window.select_from(window.pools());
        let mut sums = 0.0;
        for (document, doc) in (0..).zip(&window.documents) {
            if covered.cut.binary_search(&document).is_ok() {
                continue;
            }
            let pool = doc.pool % window.pool_shares.len();
            let cell = covered.cell(pool, doc.importance as f64 * window.unit).unwrap();
            let by = covered.selection.picks.iter().find(|pick| pick.document == document).map(|pick| pick.target);
            let is_picked = by.is_some();
            let weight = |target| window.total_weight(document, target);
            let p = covered.inclusion_probability(&selector(), window.settings.within, cell, by, weight);
            prop_assert!((0.0..=1.0).contains(&p) && (p > 0.0 || !is_picked), "{}", p);
            let turns = covered.selection.turns.iter().filter(|turn| turn.pool == cell && turn.count > 0);
            let beats = |turn: &crate::select::Turn| turn.threshold.is_none_or(|t| window.key(document, turn.target) > t);
            prop_assert_eq!(turns.clone().any(beats), is_picked);
            if window.settings.within == Within::Weighted {
                let best = turns.map(|turn| selector().inclusion_probability(weight(turn.target), turn.threshold));
                let best = best.fold(0.0, f64::max);
                let compete = is_picked && window.target_shares.len() > 1;
                let is_right = if compete { p <= best } else { p == best };
                prop_assert!(is_right, "{} of {}", p, best);
            }
            sums += p;
        }
        // A uniform draw takes exactly as many as its probabilities come to.
        if window.settings.within == Within::Uniform {
            prop_assert!((sums - covered.selection.picks.len() as f64).abs() < 1e-9, "{}", sums);
        }
    }

    /// Whoever has the edges of the exact form and the score at which it cuts goes in one pass, whatever the order, and holds no more than
    /// can be selected; where the exact form keeps some documents of that score, it is compared with itself after they have gone.
    #[test]
    fn one_pass_with_the_same_edges_and_cutoff_is_the_same_selection(
        window in window(),
        times in 1usize..14,
        rotate in 0usize..60,
        more in 0u64..5,
        is_random in any::<bool>(),
        strata_rounding in prop_oneof![Just(StrataRounding::Down), Just(StrataRounding::Random)],
    ) {
        let noise = Noise::new(window.seed, &TopicPartition::new("t", 1));
        let at_random = BudgetRounding::Random { noise: &noise, from: 7 };
        let rounding = if is_random { at_random } else { BudgetRounding::Nearest };
        // Often so many that strata are full long before all have come.
        let documents = std::iter::repeat_n(&window.documents, times).flatten().cloned().collect();
        let division = window.division();
        let window = Window { documents, pool_shares: division.pool_shares().to_vec(), ..window };
        let exact = window.select_rounded(window.pools(), rounding, strata_rounding);
        let fixed = window.settings.cutoff.zip(exact.cut_at).map(|(cutoff, at)| FixedCutoff { tail: cutoff.tail, at });
        let score = |document: u32| window.documents[document as usize].cutoff as f64;
        let is_cut = |document: &u32| fixed.is_some_and(|fixed| fixed.removes(score(*document)));
        let gone: Vec<u32> = (0..window.documents.len() as u32).filter(is_cut).collect();
        prop_assert!(exact.cut.iter().all(is_cut));
        let exact = if gone == exact.cut { exact } else {
            let mut pools = window.pools();
            pools.iter_mut().for_each(|pool| pool.retain(|document| !is_cut(document)));
            let settings = CoverageSettings { cutoff: None, ..window.settings };
            Window { settings, ..window.clone() }.select_rounded(pools, rounding, strata_rounding)
        };
        let any = Edges::new(-1.0, 1.0, window.settings.strata);
        let pools = exact.pools.iter().map(|pool| pool.edges.unwrap_or(any)).collect();
        let edges = FixedEdges { of: SketchVersion { version: 0, n_documents: 0 }, cutoff: fixed, pools };
        let mut reservoirs = StratumReservoirs::new(division, Arc::new(edges), window.count + more);
        let mut order: Vec<u32> = (0..window.documents.len() as u32).collect();
        order.rotate_left(rotate.min(window.documents.len()));
        let mut held = 0u64;
        for document in order {
            let doc = &window.documents[document as usize];
            if reservoirs.cuts(score(document)) {
                continue;
            }
            held += 1;
            let place = (doc.pool % window.pool_shares.len(), document.into());
            let key = |target| window.key(document, target);
            reservoirs.offer(place, doc.importance as f64 * window.unit, key, document, |_| held -= 1);
        }
        let CoveredWindow { chosen, n_cut, covered } = reservoirs.select(window.count, rounding, strata_rounding);
        prop_assert_eq!((covered.shortfall, n_cut), (exact.shortfall, gone.len() as u64));
        let strata = |of: &Covered| of.pools.iter().map(|pool| pool.strata.clone()).collect::<Vec<_>>();
        prop_assert_eq!(strata(&covered), strata(&exact));
        let found: Vec<_> = chosen.iter().map(|c| (c.item, c.target, c.key)).collect();
        let expected: Vec<_> = exact.selection.picks.iter().map(|p| (p.document, p.target, p.key)).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(covered.selection.turns, exact.selection.turns);
        prop_assert!(chosen.iter().all(|c| c.offset == i64::from(c.item)));
    }

    /// Two passes would cut the sketched scores at most as far; one more cell, and more than the rate allows would go.
    #[test]
    fn a_cutoff_of_a_sketch_removes_no_more_than_its_rate(scores in proptest::collection::vec(0.1f64..20.0, 0..300), rate in 1u32..1000, is_low in any::<bool>()) {
        let mut sketch = QuantileSketch::default();
        scores.iter().for_each(|score| sketch.add(*score));
        let cutoff = Cutoff { rate: format!("0.{rate:03}").parse().unwrap(), tail: if is_low { Tail::Low } else { Tail::High } };
        let n = scores.len() * rate as usize / 1000;
        let found = FixedCutoff::of_sketch(&sketch, cutoff);
        let n_cut = |at: f64| scores.iter().filter(|score| FixedCutoff { tail: cutoff.tail, at }.removes(**score)).count();
        prop_assert!(found.is_none_or(|found| n_cut(found.at) <= n && found.tail == cutoff.tail));
        let width = 1.0 + 2.0 * QuantileSketch::RELATIVE_ERROR;
        let further = |score: f64| if is_low { score * width } else { score / width };
        let next = scores.iter().filter(|score| found.is_none_or(|found| !found.removes(**score)));
        let next = if is_low { next.copied().min_by(f64::total_cmp) } else { next.copied().max_by(f64::total_cmp) };
        prop_assert!(next.is_none_or(|next| n_cut(further(next)) > n));
    }

    /// Whatever the windows are: every cell spends its budgets, no window owes more than it has, and what is selected of a pool
    /// is never far from its share.
    #[test]
    fn windows_spend_the_budgets_of_a_plan(window in window(), size in 1usize..20, rounds in 1u32..4) {
        let request = CoverageRequest {
            count: window.count,
            settings: window.settings,
            pool_shares: &window.pool_shares,
            target_shares: &window.target_shares,
            rounding: BudgetRounding::Nearest,
            strata_rounding: StrataRounding::Down,
        };
        let of = |document: u32| &window.documents[document as usize];
        let importance = |document| of(document).importance as f64 * window.unit;
        let plan = plan_coverage(&request, window.pools(), &|document| of(document).cutoff as f64, &importance);
        let mut schedules: Vec<Schedule> = plan.schedules();
        let mut taken = vec![vec![0; window.target_shares.len()]; plan.cells.len()];
        let numbers: Vec<u32> = (0..window.documents.len() as u32).collect();
        for part in numbers.chunks(size) {
            for (cell, planned) in plan.cells.iter().enumerate() {
                let n = part.iter().filter(|document| planned.documents.contains(document)).count() as u64;
                let mut left = n;
                for round in 1..=rounds {
                    let counts = schedules[cell].take(n, round, rounds);
                    let count: u64 = counts.iter().sum();
                    prop_assert!(count <= left, "{} of {}", count, left);
                    left -= count;
                    taken[cell].iter_mut().zip(counts).for_each(|(taken, count)| *taken += count);
                }
            }
        }
        let budgets: Vec<_> = plan.cells.iter().map(|cell| cell.budgets.clone()).collect();
        prop_assert_eq!(taken, budgets);
    }

    /// The loop differs from the water level by its roundings, at most one document a stratum.
    #[test]
    fn budgets_are_a_water_level(sizes in proptest::collection::vec(0u64..300, 1..60), total in 0u64..9_000) {
        let budgets = water_fill(total, &sizes);
        prop_assert_eq!(budgets.iter().sum::<u64>(), total.min(sizes.iter().sum()));
        prop_assert!(budgets.iter().zip(&sizes).all(|(budget, size)| budget <= size));
        let filled = |level: f64| sizes.iter().map(|size| (*size as f64).min(level)).sum::<f64>();
        let (mut low, mut high) = (0.0, 300.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if filled(middle) < total as f64 { low = middle } else { high = middle }
        }
        for (budget, size) in budgets.iter().zip(&sizes) {
            prop_assert!((*budget as f64 - (*size as f64).min(high)).abs() <= 1.0 + 1e-6, "{} of {} at {}", budget, size, high);
        }
        // More never takes from a stratum by more than a rounding.
        let more = water_fill(total + 1, &sizes);
        prop_assert!(budgets.iter().zip(&more).all(|(before, after)| *after + 1 >= *before));
    }

    #[test]
    fn targets_get_their_shares_over_all_strata(
        budgets in proptest::collection::vec(0u64..9, 0..60),
        share in 0.05f64..0.9,
        uniform in 0.0f64..1.0,
    ) {
        let shares = [share, 0.95 - share, 0.05];
        let total: u64 = budgets.iter().sum();
        let of_targets = apportion(total, &shares, &[total; 3], Rounding::Nearest);
        let from_any = split_among_targets_from(uniform, &budgets, &of_targets);
        for parts in [split_among_targets(&budgets, &of_targets), from_any] {
            prop_assert_eq!(parts.len(), budgets.len());
            prop_assert!(parts.iter().zip(&budgets).all(|(parts, budget)| parts.iter().sum::<u64>() == *budget));
            let sums: Vec<u64> = (0..3).map(|target| parts.iter().map(|parts| parts[target]).sum()).collect();
            prop_assert_eq!(&sums, &of_targets);
        }
    }

    #[test]
    fn strata_cover_every_score(low in -1e308f64..1e308, width in 0.0f64..1e308, strata in 1u32..100, score in -1.7e308f64..1.7e308) {
        let edges = Edges::new(low, (low + width).min(f64::MAX), strata);
        let (from, to) = edges.bounds(edges.stratum(score));
        let slack = 1e-9 * (edges.range().1 / 2.0 - edges.range().0 / 2.0).abs();
        let inside = score.clamp(edges.range().0, edges.range().1);
        prop_assert!(inside >= from - slack && inside <= to + slack, "{} is not within {}..{}", inside, from, to);
        prop_assert!(edges.stratum(score) < strata as usize);
        prop_assert_eq!(edges.stratum(edges.range().0), 0);
        if width > 0.0 {
            prop_assert_eq!(edges.stratum(edges.range().1), strata as usize - 1);
        }
    }

    #[test]
    fn edges_of_a_sketch_are_those_of_the_scores_but_for_its_error(scores in proptest::collection::vec(0.1f64..20.0, 2..300), clip in 0.0f64..0.3) {
        let mut sketch = QuantileSketch::default();
        scores.iter().for_each(|score| sketch.add(*score));
        let exact = Edges::of(scores, 10, clip).unwrap().range();
        let found = Edges::of_sketch(&sketch, 10, clip).unwrap().range();
        // Where all but the ends is one number to the sketch, it falls back to the ends, which is wider.
        let is_near = |found: f64, exact: f64| (found - exact).abs() <= QuantileSketch::RELATIVE_ERROR * exact;
        let is_whole = found == (sketch.quantile(0.0).unwrap(), sketch.quantile(1.0).unwrap());
        prop_assert!(is_whole || (is_near(found.0, exact.0) && is_near(found.1, exact.1)), "{:?} for {:?}", found, exact);
    }
}

/// Half a document at each end: both must round it the same way.
#[test]
fn a_sketch_clips_as_many_as_the_scores_do() {
    let scores: Vec<f64> = (0..101).map(|i| 1.5f64.powi(i)).collect();
    let mut sketch = QuantileSketch::default();
    scores.iter().for_each(|score| sketch.add(*score));
    let (exact, found) = (Edges::of(scores, 4, 0.005).unwrap(), Edges::of_sketch(&sketch, 4, 0.005).unwrap());
    let ((low, high), (found_low, found_high)) = (exact.range(), found.range());
    assert!(
        (found_low / low - 1.0).abs() < 0.004 && (found_high / high - 1.0).abs() < 0.004,
        "{found:?} for {exact:?}"
    );
}

/// Two thirds of the documents are easy; uniform sampling takes what there is, coverage takes both alike.
#[test]
fn rare_scores_get_as_much_as_frequent_ones() {
    let documents = (0..90).map(|i| Doc { pool: 0, cutoff: 0, importance: if i < 60 { 0 } else { 9 }, weight: 0.0 });
    let settings = CoverageSettings { strata: 10, cutoff: None, within: Within::Uniform, clip: 0.0 };
    let window = Window {
        documents: documents.collect(),
        unit: 1.0,
        count: 20,
        pool_shares: vec![1.0],
        target_shares: vec![1.0],
        settings,
        seed: 1,
    };
    let covered = window.select_from(window.pools());
    let hard = covered.selection.picks.iter().filter(|pick| pick.document >= 60).count();
    assert_eq!((covered.selection.picks.len(), hard), (20, 10));
    assert_eq!(covered.occupied(), (2, 2));
    let (easy, hard) = (covered.cell(0, 0.0).unwrap(), covered.cell(0, 9.0).unwrap());
    let p = |cell| covered.inclusion_probability(&selector(), Within::Uniform, cell, None, |_| 0.0);
    assert_eq!((p(easy), p(hard)), (10.0 / 60.0, 10.0 / 30.0));
    assert_eq!(covered.cell(1, 0.0), None);
}

/// Two targets compete in each of two strata.
#[test]
fn the_horvitz_thompson_total_of_strata_is_unbiased() {
    const SEEDS: u64 = 20_000;
    let document = |i: i64| Doc { pool: 0, cutoff: 0, importance: i % 2, weight: (i / 2 % 5 - 2) as f64 };
    let settings = CoverageSettings { strata: 2, cutoff: None, within: Within::Weighted, clip: 0.0 };
    let mut window = Window {
        documents: (0..20).map(document).collect(),
        unit: 1.0,
        count: 8,
        pool_shares: vec![1.0],
        target_shares: vec![0.5, 0.5],
        settings,
        seed: 0,
    };
    let (mut sum, mut squares, mut by_thresholds) = (0.0, 0.0, 0.0);
    for seed in 0..SEEDS {
        window.seed = seed;
        let covered = window.select_from(window.pools());
        let total = |by: fn(&Pick) -> Option<usize>| -> f64 {
            let chance = |pick: &Pick| {
                let cell = covered.cell(0, window.documents[pick.document as usize].importance as f64).unwrap();
                let weight = |target| window.total_weight(pick.document, target);
                covered.inclusion_probability(&selector(), Within::Weighted, cell, by(pick), weight)
            };
            covered.selection.picks.iter().map(|pick| chance(pick).recip()).sum()
        };
        let estimate = total(|pick| Some(pick.target));
        sum += estimate;
        squares += estimate * estimate;
        by_thresholds += total(|_| None);
    }
    let n = SEEDS as f64;
    let (mean, old_mean) = (sum / n, by_thresholds / n);
    let limit = 4.0 * ((squares / n - mean * mean) / n).sqrt();
    assert!((mean - 20.0).abs() < limit, "{mean} of 20 documents, {limit} could be chance");
    assert!(2.0 * limit < mean - old_mean, "{old_mean} by the thresholds, {limit} could be chance");
}

#[test]
fn one_outlier_does_not_put_all_others_into_one_stratum() {
    let mut scores: Vec<f64> = (0..1000).map(f64::from).collect();
    scores[7] = 1e9;
    let plain = Edges::of(scores.clone(), 50, 0.0).unwrap();
    assert!((0..1000).all(|score| plain.stratum(f64::from(score)) == 0));
    let clipped = Edges::of(scores.clone(), 50, DEFAULT_CLIP).unwrap();
    let mut occupied: Vec<usize> = scores.iter().map(|score| clipped.stratum(*score)).collect();
    occupied.sort_unstable();
    occupied.dedup();
    assert_eq!(occupied.len(), 50);
    // Clipping must not hide the few that differ from all others.
    let nearly_equal: Vec<f64> = (0..1000).map(|i| if i == 0 { 5.0 } else { 1.0 }).collect();
    let edges = Edges::of(nearly_equal, 4, DEFAULT_CLIP).unwrap();
    assert_eq!((edges.stratum(1.0), edges.stratum(5.0)), (0, 3));
}

#[test]
fn what_the_published_code_loses_is_kept() {
    for scores in [vec![-3.0, -2.0, -1.0], vec![-1.0, 0.0, 0.0], vec![0.0; 3], vec![4.0; 3], vec![-4.0; 3]] {
        let edges = Edges::of(scores.clone(), 50, 0.0).unwrap();
        let strata: Vec<usize> = scores.iter().map(|score| edges.stratum(*score)).collect();
        let is_flat = scores.iter().all(|score| *score == scores[0]);
        assert_eq!(strata.last(), Some(if is_flat { &0 } else { &49 }), "{scores:?}");
    }
    assert_eq!(Edges::of(Vec::new(), 50, 0.0), None);
    assert_eq!(water_fill(10, &[]), Vec::<u64>::new());
    // The remainder flows to later strata, and of equal ones the first is the smaller one.
    assert_eq!(water_fill(11, &[5, 0, 5, 5]), [3, 0, 4, 4]);
    assert_eq!(water_fill(100, &[5, 0, 5, 5]), [5, 0, 5, 5]);
}

#[test]
#[should_panic(expected = "not a number")]
fn nan_has_no_stratum() {
    Edges::new(0.0, 1.0, 4).stratum(f64::NAN);
}

/// Frequencies over seeds are what the probabilities say: uniform inside a stratum.
#[test]
fn documents_of_a_stratum_are_drawn_alike() {
    let documents = [0, 0, 0, 0, 0, 7, 7, 9];
    let settings = CoverageSettings { strata: 3, cutoff: None, within: Within::Uniform, clip: 0.0 };
    let mut counts = [0u32; 8];
    let n_draws = 20_000;
    for seed in 0..n_draws {
        let documents = documents.iter().map(|i| Doc { pool: 0, cutoff: 0, importance: *i, weight: 0.0 }).collect();
        let shares = vec![1.0];
        let window = Window {
            documents,
            unit: 1.0,
            count: 4,
            pool_shares: shares.clone(),
            target_shares: shares,
            settings,
            seed,
        };
        window.select_from(window.pools()).selection.picks.iter().for_each(|pick| counts[pick.document as usize] += 1);
    }
    // Strata of 5, 0 and 3 documents give 2 each. Five standard errors of 20,000 draws: 0.0174 at most.
    for (document, count) in counts.into_iter().enumerate() {
        let expected = if document < 5 { 0.4 } else { 2.0 / 3.0 };
        let seen = f64::from(count) / n_draws as f64;
        assert!((seen - expected).abs() < 0.0174, "document {document}: {seen} for {expected}");
    }
}

/// Strata with documents enough hold about what they will give, not what each might have given alone.
#[test]
fn no_more_is_held_than_strata_can_still_give() {
    let edges = |strata| FixedEdges {
        of: SketchVersion { version: 0, n_documents: 0 },
        cutoff: None,
        pools: vec![Edges::new(0.0, 1.0, strata)],
    };
    let held = |strata: u32, n: u64, importance: &dyn Fn(u64) -> f64| {
        let mut reservoirs = StratumReservoirs::new(Arc::new(Division::whole()), Arc::new(edges(strata)), 1_000);
        let (mut held, mut most) = (0u64, 0);
        for i in 0..n {
            held += 1;
            let key = (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64;
            reservoirs.offer((0, i as i64), importance(i), |_| key, (), |()| held -= 1);
            most = most.max(held);
        }
        (held, most, reservoirs.select(1_000, BudgetRounding::Nearest, StrataRounding::Down).chosen.len())
    };
    // All alike; nearly all easy; the rare ones come last.
    for importance in [
        &(|i: u64| i.wrapping_mul(7919) as f64 % 10_007.0 / 10_007.0) as &dyn Fn(u64) -> f64,
        &|i| if i % 100 == 0 { (i / 100 % 50) as f64 / 50.0 } else { 0.01 },
        &|i| if i < 19_000 { 0.01 } else { (i % 50) as f64 / 50.0 },
    ] {
        let (held, most, n) = held(50, 20_000, importance);
        assert_eq!(n, 1_000);
        // One above the budget of each stratum for its threshold, one as budgets round, and those of the last look.
        let enough = 1_000 + 2 * 50 + 20_000 / 256;
        assert!(held <= enough && most <= enough, "{held} held, {most} at the most");
    }
}

#[test]
fn edges_rest_on_enough_documents_and_sources_on_their_own() {
    let window = Window {
        documents: Vec::new(),
        unit: 1.0,
        count: 0,
        pool_shares: vec![0.5, 0.25, 0.25],
        target_shares: vec![1.0],
        settings: CoverageSettings { strata: 4, cutoff: None, within: Within::Uniform, clip: 0.0 },
        seed: 0,
    };
    let division = window.division();
    let cutoff = Some(Cutoff { rate: "0.5".parse().unwrap(), tail: Tail::High });
    let settings = CoverageSettings { cutoff, ..window.settings };
    let sketch = |numbers: std::ops::Range<u32>| {
        let mut sketch = QuantileSketch::default();
        numbers.for_each(|number| sketch.add(f64::from(number)));
        sketch
    };
    let tally = |of_others: u32, of_first: u32| {
        let pools = vec![sketch(10..10 + of_others), sketch(5000..5000 + of_first), sketch(90_000..90_010)];
        EdgeTally::new(&division, sketch(0..100), pools)
    };
    let mut sketches = EdgeSketches::default();
    let fixed = |sketches: &EdgeSketches| {
        EdgesVersion { version: 3, sketches: Arc::new(sketches.clone()) }.fixed(&settings, &division)
    };
    assert_eq!(fixed(&sketches), None);
    sketches.add(&tally(400, 500), 1 << 40);
    assert_eq!((sketches.n_documents(), fixed(&sketches)), (910, None));
    sketches.add(&tally(400, 500), 1 << 40);
    let found = fixed(&sketches).unwrap();
    assert!((1_815..=1_820).contains(&found.of.n_documents) && found.of.version == 3, "{:?}", found.of);
    // Of no source enough are known: of the first a little less than 1,000, as the former ones have begun to fade.
    assert!(found.pools.iter().all(|edges| edges.range() == (10.0, 90_009.0)), "{:?}", found.pools);
    let cut = found.cutoff.unwrap();
    assert!(cut.removes(51.0) && !cut.removes(48.0) && cut.tail == Tail::High, "{cut:?}");
    sketches.add(&tally(400, 600), 1 << 40);
    let found = fixed(&sketches).unwrap();
    assert_eq!(found.pools[1].range(), (5_000.0, 5_599.0));
    assert_eq!((found.pools[0].range(), found.pools[2].range()), ((10.0, 409.0), (10.0, 90_009.0)));

    // Half as much after the half-life, and what nobody sends any more is no pool.
    let before = sketches.n_documents();
    let other = EdgeTally::new(&Division::whole(), QuantileSketch::default(), vec![sketch(0..10_000)]);
    let mut later = sketches.clone();
    later.add(&other, 10_000);
    assert!(later.n_documents().abs_diff(10_000 + before / 2) <= 1, "{} after {before}", later.n_documents());
    (0..12).for_each(|_| later.add(&other, 10_000));
    assert_eq!(fixed(&later).unwrap().pools[1], fixed(&later).unwrap().pools[0]);

    let mut bytes = sketches.to_bytes();
    assert_eq!(EdgeSketches::from_bytes(&bytes), Ok(sketches));
    for at in (0..bytes.len()).step_by(bytes.len() / 40) {
        assert!(EdgeSketches::from_bytes(&bytes[..at]).is_err());
        bytes[at] ^= 1;
        assert!(EdgeSketches::from_bytes(&bytes).is_err(), "byte {at}");
        bytes[at] ^= 1;
    }
    assert_eq!(EdgeSketches::from_bytes(&EdgeSketches::default().to_bytes()), Ok(EdgeSketches::default()));
}

/// Whatever makes the numbers others makes them other numbers.
#[test]
fn sketches_are_of_numbers_that_are_named() {
    let of = |importance: Criterion, cutoff: Option<&str>, edges_from| {
        let cutoff = cutoff.map(|rate| Cutoff { rate: rate.parse().unwrap(), tail: Tail::Low });
        let settings = CoverageSettings { strata: 4, cutoff, within: Within::Uniform, clip: 0.0 };
        let (cutoff_by, strata_rounding) = (Criterion::Weight, StrataRounding::Random);
        let coverage = Some(CoverageSelector { settings, importance, cutoff_by, edges_from, strata_rounding });
        SelectorSettings { coverage, ..selector() }.sketched_numbers("m")
    };
    let loss = || Criterion::Field("loss".to_owned());
    assert_eq!(of(loss(), None, EdgesFrom::Window), None);
    assert_eq!(of(loss(), None, EdgesFrom::Stream).as_deref(), Some("field loss"));
    assert_eq!(of(Criterion::Weight, None, EdgesFrom::Stream).as_deref(), Some("weight by m"));
    assert_eq!(
        of(loss(), Some("0.2"), EdgesFrom::Stream).as_deref(),
        Some("field loss without the 0.2 of lowest weight by m")
    );
    assert_eq!(selector().sketched_numbers("m"), None);
    // A source and a language may be called the same.
    let settings = CoverageSettings { strata: 4, cutoff: None, within: Within::Uniform, clip: 0.0 };
    let coverage = Some(CoverageSelector {
        settings,
        importance: loss(),
        cutoff_by: Criterion::Weight,
        edges_from: EdgesFrom::Stream,
        strata_rounding: StrataRounding::Random,
    });
    let quotas = Quotas { field: Some("language".to_owned()), ..Quotas::default() };
    let of_languages = SelectorSettings { coverage, quotas, ..selector() };
    assert_eq!(of_languages.sketched_numbers("m").as_deref(), Some("field loss by language"));
}

/// Documents of twenty strata, one of them without any.
const UNEQUAL: [u64; 20] = [1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8, 9, 10, 12, 14, 0, 17, 21, 30, 41];

/// Also where a window selects fewer documents than it has strata. Rounded down the small ones would get nothing in any
/// window.
#[test]
fn every_stratum_has_its_level_over_many_windows() {
    const WINDOWS: i64 = 4_000;
    let noise = Noise::new(5, &TopicPartition::new("t", 0));
    assert_eq!(water_fill(10, &UNEQUAL).iter().filter(|budget| **budget > 0).count(), 10);
    // By hand: 10 among 19; 60 without 1, 2, 2, 3 and 3, among 14.
    for (count, level) in [(10u64, 10.0 / 19.0), (60, 49.0 / 14.0)] {
        let due = |size: u64| (size as f64).min(level);
        assert!((UNEQUAL.iter().map(|size| due(*size)).sum::<f64>() - count as f64).abs() < 1e-9, "no level: {level}");
        let mut sums = [0u64; 20];
        for from in 0..WINDOWS {
            let rounding = BudgetRounding::Random { noise: &noise, from };
            let (budgets, parts) = StrataRounding::Random.budgets(0, &[count], &UNEQUAL, rounding);
            assert_eq!(budgets.iter().sum::<u64>(), count);
            assert_eq!(parts.concat(), budgets);
            for ((sum, budget), size) in sums.iter_mut().zip(&budgets).zip(UNEQUAL) {
                assert!((*budget as f64 - due(size)).abs() < 1.0, "{budgets:?}");
                *sum += *budget;
            }
        }
        for (sum, size) in sums.into_iter().zip(UNEQUAL) {
            let (mean, due) = (sum as f64 / WINDOWS as f64, due(size));
            let standard_error = (due.fract() * (1.0 - due.fract()) / WINDOWS as f64).sqrt();
            assert!((mean - due).abs() <= 4.0 * standard_error, "{mean} of {size} instead of {due}");
        }
    }
}

/// Each of two targets has half of every stratum, though a stratum has one document for both of them.
#[test]
fn no_target_always_gets_the_same_strata() {
    const WINDOWS: i64 = 2_000;
    let noise = Noise::new(6, &TopicPartition::new("t", 0));
    let mut sums = [0u64; 8];
    for from in 0..WINDOWS {
        let rounding = BudgetRounding::Random { noise: &noise, from };
        let (budgets, parts) = StrataRounding::Random.budgets(1, &[4, 4], &[9; 8], rounding);
        assert_eq!(budgets, [1; 8]);
        sums.iter_mut().zip(&parts).for_each(|(sum, parts)| *sum += parts[0]);
    }
    // Five standard errors of half of them.
    assert!(sums.iter().all(|sum| (888..=1_112).contains(sum)), "{sums:?}");
}

/// By hand: one document is selected, or in one case of ten two; shares of pools are of that.
#[test]
fn chances_of_strata_are_those_of_their_budgets() {
    let fraction: Fraction = "0.1".parse().unwrap();
    let whole = Division::whole();
    let chances = |rounding: StrataRounding, division: &Division, n, sizes: &[Vec<u64>]| {
        rounding.chances(division, fraction, n, sizes)
    };
    let are_near = |found: Vec<Vec<f64>>, expected: &[&[f64]]| {
        let expected = expected.concat();
        let is_near = |(found, expected): (&f64, &f64)| (found - expected).abs() < 1e-12;
        assert!(found.concat().len() == expected.len(), "{found:?}");
        assert!(found.concat().iter().zip(&expected).all(is_near), "{found:?} instead of {expected:?}");
    };
    are_near(chances(StrataRounding::Random, &whole, 11, &[vec![5, 6]]), &[&[0.55, 0.55]]);
    // As it was recorded before: that of the pool.
    are_near(chances(StrataRounding::Down, &whole, 11, &[vec![5, 6]]), &[&[1.0, 1.0]]);
    // A stratum without documents has no part in it, and those that are sure of one are sure of it to the last bit.
    are_near(chances(StrataRounding::Random, &whole, 11, &[vec![5, 0, 6]]), &[&[0.55, 0.0, 0.55]]);
    assert_eq!(chances(StrataRounding::Random, &whole, 37, &[vec![7, 20, 10]]), [[1.0; 3]]);
    // Of 3 documents a quarter is the second pool's: none in one case of four, otherwise one, of three strata.
    let window = Window {
        documents: Vec::new(),
        unit: 1.0,
        count: 0,
        pool_shares: vec![0.75, 0.25],
        target_shares: vec![1.0],
        settings: CoverageSettings { strata: 3, cutoff: None, within: Within::Uniform, clip: 0.0 },
        seed: 0,
    };
    let sizes = [vec![5, 5], vec![10, 5, 5]];
    let expected: [&[f64]; 2] = [&[1.0, 1.0], &[0.25; 3]];
    are_near(chances(StrataRounding::Random, &window.division(), 30, &sizes), &expected);
}

/// What is recorded without a rounding decides as it did, to the last bit, and is recorded as it was.
#[test]
fn settings_that_were_recorded_before_decide_as_before() {
    let old = concat!(
        r#"{"strata":8,"cutoff":{"rate":"0.1","tail":"high"},"within":"weighted","clip":0.0,"#,
        r#""importance":{"field":"hard"},"cutoff_by":{"field":"hard"}}"#
    );
    let selector: CoverageSelector = serde_json::from_str(old).unwrap();
    assert_eq!(selector.strata_rounding, StrataRounding::Down);
    assert_eq!(serde_json::to_string(&selector).unwrap(), old);
    let now = CoverageSelector { strata_rounding: StrataRounding::Random, ..selector.clone() };
    let json = serde_json::to_string(&now).unwrap();
    assert!(json.ends_with(r#","strata_rounding":"random"}"#), "{json}");
    assert_eq!(serde_json::from_str::<CoverageSelector>(&json).unwrap(), now);

    let noise = Noise::new(5, &TopicPartition::new("t", 0));
    let budgets = water_fill(10, &UNEQUAL);
    let parts = split_among_targets(&budgets, &[6, 4]);
    let expected = (budgets, parts);
    for from in 0..100 {
        let rounding = BudgetRounding::Random { noise: &noise, from };
        assert_eq!(selector.strata_rounding.budgets(0, &[6, 4], &UNEQUAL, rounding), expected);
    }
    // Files have one selection, however windows are rounded.
    assert_eq!(now.strata_rounding.budgets(0, &[6, 4], &UNEQUAL, BudgetRounding::Nearest), expected);
    let chances = selector.strata_rounding.chances(&Division::whole(), "0.1".parse().unwrap(), 4, &[vec![1, 3]]);
    assert_eq!(chances, [[0.4; 2]]);
}
