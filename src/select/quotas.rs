//! How a selection is divided among sources, or the values of another field, and targets, by name as people write it, and resolved for a
//! model. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::apportion::dues;
use super::{BudgetRounding, Fraction, budgets};
use crate::score::Model;

/// Shares that are named must not sum to more than this above 1: they are decimal numbers.
const TOLERANCE: f64 = 1e-9;

/// Shares of a selection, by name: a value, so that it can be recorded beside what was selected by it. A window takes the
/// one that is in force when it opens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Quotas {
    /// The field of the record whose values have the shares of `sources`; `None`: the one that says where a document comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Of sources, or values of the field, that are pools of their own; all other documents are one more pool, with what is left.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, f64>,
    /// Of targets: all of them, or none, where the model has one target or its own proportions are taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proportions: BTreeMap<String, f64>,
}

impl Quotas {
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.proportions.is_empty()
    }

    /// Of a document with this value in the field: the number of its pool, as a [`Division`] has it.
    pub fn pool_of(&self, value: Option<&str>) -> u16 {
        let named = |value: &str| self.sources.keys().position(|name| name == value);
        value.and_then(named).map_or(0, |i| i as u16 + 1)
    }

    /// A pool in words; `None` is that of all others.
    pub fn pool_name(&self, value: Option<&str>) -> String {
        match (&self.field, value) {
            (None, Some(source)) => format!("source {source}"),
            (None, None) => "all other sources".to_owned(),
            (Some(field), Some(value)) => format!("{field} {value}"),
            (Some(field), None) => format!("all other values of {field}"),
        }
    }

    /// The same with nothing left to the model.
    pub fn of_model(self, model: &Model) -> Self {
        let is_settled = !self.proportions.is_empty() || model.targets.len() == 1;
        let of_model = || model.targets.iter().map(|target| (target.name.clone(), target.proportion)).collect();
        let proportions = if is_settled { self.proportions } else { of_model() };
        Quotas { proportions, ..self }
    }

    /// What is wrong with the shares of sources, if anything: a name or nothing, and the problem.
    pub fn source_problem(&self) -> Option<(Option<&str>, String)> {
        let sum: f64 = self.sources.values().sum();
        problem_of(&self.sources)
            .or_else(|| (sum > 1.0 + TOLERANCE).then(|| (None, format!("the shares sum to {sum}, to more than 1"))))
    }

    /// The same of the shares of targets, for a model with targets of these names. They must name all of them, or none.
    pub fn proportion_problem(&self, targets: &[&str]) -> Option<(Option<&str>, String)> {
        if self.proportions.is_empty() {
            return None;
        }
        if let Some(problem) = problem_of(&self.proportions) {
            return Some(problem);
        }
        if let [_] = targets {
            return Some((None, "the model has one target, which gets all".to_owned()));
        }
        if let Some(unknown) = self.proportions.keys().find(|name| !targets.contains(&name.as_str())) {
            let known = targets.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Some((Some(unknown), format!("no target of the model has this name; it has {known}")));
        }
        if let Some(missing) = targets.iter().find(|name| !self.proportions.contains_key(**name)) {
            return Some((None, format!("target `{missing}` has none; give all of them or none")));
        }
        let sum: f64 = self.proportions.values().sum();
        ((sum - 1.0).abs() > TOLERANCE).then(|| (None, format!("the shares sum to {sum}, not to 1")))
    }
}

fn problem_of(shares: &BTreeMap<String, f64>) -> Option<(Option<&str>, String)> {
    let wrong = |share: f64| !(share > 0.0 && share <= 1.0);
    let (name, _) = shares.iter().find(|(_, share)| wrong(**share))?;
    Some((Some(name), "the share must be above 0 and at most 1".to_owned()))
}

/// Shares of all pools: of the documents whose source (or value of another field) has none of its own, then of each that has one.
pub fn pool_shares_of(sources: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut shares = vec![0.0];
    shares.extend(sources);
    let named: f64 = shares.iter().sum();
    shares[0] = if named > 1.0 - TOLERANCE { 0.0 } else { 1.0 - named };
    shares
}

/// [`Quotas`] for one model: pools and targets by number. The first pool is that of all sources (or values of another field) without a
/// share of their own; the others follow by name, the targets as the model has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Division {
    /// Sorted.
    sources: Vec<String>,
    pool_shares: Vec<f64>,
    /// Names of the targets; none of a model's only one.
    targets: Vec<String>,
    target_shares: Vec<f64>,
    /// Of quotas that change: see [`Division::of_version`].
    version: Option<i64>,
}

impl Division {
    /// One pool for one target.
    pub fn whole() -> Self {
        Division {
            sources: Vec::new(),
            pool_shares: vec![1.0],
            targets: Vec::new(),
            target_shares: vec![1.0],
            version: None,
        }
    }

    /// # Panics
    /// If the quotas have proportions of other targets, which [`Quotas::proportion_problem`] tells.
    pub fn of(quotas: &Quotas, model: &Model) -> Self {
        let share = |name: &String| quotas.proportions.get(name).copied();
        let target_shares = match &model.targets[..] {
            [_] => vec![1.0],
            targets if quotas.proportions.is_empty() => targets.iter().map(|target| target.proportion).collect(),
            targets => targets.iter().map(|t| share(&t.name).expect("every target has a share")).collect(),
        };
        Division {
            sources: quotas.sources.keys().cloned().collect(),
            pool_shares: pool_shares_of(quotas.sources.values().copied()),
            targets: model.targets.iter().map(|t| t.name.clone()).filter(|_| model.targets.len() > 1).collect(),
            target_shares,
            version: None,
        }
    }

    /// The same, by this version of quotas that change while the pipeline runs.
    pub fn of_version(self, version: i64) -> Self {
        Division { version: Some(version), ..self }
    }

    pub fn version(&self) -> Option<i64> {
        self.version
    }

    /// Whether it divides nothing.
    pub fn is_whole(&self) -> bool {
        self.pool_shares.len() == 1 && self.target_shares.len() == 1
    }

    pub fn n_pools(&self) -> usize {
        self.pool_shares.len()
    }

    pub fn n_targets(&self) -> usize {
        self.target_shares.len()
    }

    /// Names of several targets; nothing of one.
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    pub fn pool_shares(&self) -> &[f64] {
        &self.pool_shares
    }

    pub fn target_shares(&self) -> &[f64] {
        &self.target_shares
    }

    /// The pool that a document of this source, or with this value in another field, belongs to.
    pub fn pool_of(&self, source: Option<&str>) -> usize {
        let named = |source: &str| self.sources.binary_search_by(|name| name.as_str().cmp(source)).ok();
        source.and_then(named).map_or(0, |i| i + 1)
    }

    /// The source, or value of another field, whose documents are this pool; `None` of the pool of all others.
    pub fn source_of(&self, pool: usize) -> Option<&str> {
        self.sources.get(pool.checked_sub(1)?).map(String::as_str)
    }

    /// See [`budgets`].
    pub fn budgets(&self, count: u64, available: &[u64], rounding: BudgetRounding<'_>) -> Vec<Vec<u64>> {
        budgets(count, &self.pool_shares, &self.target_shares, available, rounding)
    }

    /// The most that can ever be chosen from each pool, where `so_far` candidates have come of each and `at_most` documents
    /// are chosen in all: what the others have cannot flow to it any more.
    pub fn most(&self, at_most: u64, so_far: &[u64]) -> Vec<u64> {
        let mut available = so_far.to_vec();
        let most_of_pool = |pool: usize| {
            let others = std::mem::replace(&mut available[pool], 1 << 62);
            let due = dues(at_most, &self.pool_shares, &available)[pool];
            available[pool] = others;
            // Rounded up, and one for the sums.
            (due as u64 + 2).min(at_most)
        };
        (0..self.n_pools()).map(most_of_pool).collect()
    }

    /// Of a pool from which `most` can be chosen, how many the targets up to each can choose together, at most.
    pub fn most_up_to_targets(&self, most: u64) -> Vec<u64> {
        let total: f64 = self.target_shares.iter().sum();
        let mut sum = 0.0;
        let up_to = |share: &f64| {
            sum += share;
            ((sum / total * most as f64) as u64 + 2).min(most)
        };
        self.target_shares.iter().map(up_to).collect()
    }

    /// Chance that anything is chosen from each pool, over how the shares are rounded at random.
    pub fn chances(&self, fraction: Fraction, n_documents: u64, available: &[u64]) -> Vec<f64> {
        self.mean_over_budgets(fraction, n_documents, available, |_, budget| vec![budget.min(1) as f64]).concat()
    }

    /// Of each pool what numbers are on average, over how the count and the shares are rounded at random. `of`: what
    /// they are where a pool has a budget.
    pub(super) fn mean_over_budgets(
        &self,
        fraction: Fraction,
        n_documents: u64,
        available: &[u64],
        of: impl Fn(usize, u64) -> Vec<f64>,
    ) -> Vec<Vec<f64>> {
        let (whole, chance_of_more) = fraction.whole_and_chance(n_documents);
        let [less, more] = [whole, whole + 1].map(|count| dues(count, &self.pool_shares, available));
        // Of the budgets next to a due.
        let of_due = |pool: usize, due: f64| between(of(pool, due as u64), &of(pool, due as u64 + 1), due.fract());
        let of_pool = |(pool, (less, more)): (usize, (f64, f64))| {
            between(of_due(pool, less), &of_due(pool, more), chance_of_more)
        };
        less.into_iter().zip(more).enumerate().map(of_pool).collect()
    }
}

/// Just `less` where both are the same, to the last bit.
fn between(less: Vec<f64>, more: &[f64], part: f64) -> Vec<f64> {
    less.into_iter().zip(more).map(|(less, more)| less + (more - less) * part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Featuriser;
    use crate::score::{NgramCounts, Side, Target};

    fn model(targets: &[(&str, f64)]) -> Model {
        let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
        let featuriser = Featuriser { buckets: 2, ..Featuriser::default() };
        let one = Model::of_one_target(featuriser, side(), side()).unwrap();
        let target =
            |(name, proportion): &(&str, f64)| Target { name: (*name).into(), proportion: *proportion, side: side() };
        Model { targets: targets.iter().map(target).collect(), ..one }
    }

    fn shares(named: &[(&str, f64)]) -> BTreeMap<String, f64> {
        named.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
    }

    #[test]
    fn mistakes_are_told() {
        let sources = |named| Quotas { sources: shares(named), ..Quotas::default() };
        assert_eq!(sources(&[("a", 0.5), ("b", 0.5)]).source_problem(), None);
        assert_eq!(sources(&[("a", 0.5), ("b", 0.0)]).source_problem().unwrap().0, Some("b"));
        assert!(sources(&[("a", 0.5), ("b", 0.6)]).source_problem().unwrap().1.contains("sum to 1.1"));
        let problem = |named, targets: &[&str]| {
            let quotas = Quotas { proportions: shares(named), ..Quotas::default() };
            quotas.proportion_problem(targets).map(|(name, problem)| (name.map(str::to_owned), problem))
        };
        assert_eq!(problem(&[], &["a", "b"]), None);
        assert_eq!(problem(&[("a", 0.7), ("b", 0.3)], &["b", "a"]), None);
        for (named, name, expected) in [
            (&[("a", 0.7), ("c", 0.3)][..], Some("c"), "it has `a`, `b`"),
            (&[("a", 1.0)], None, "target `b` has none"),
            (&[("a", 0.5), ("b", 0.25)], None, "sum to 0.75"),
            (&[("a", 0.7), ("b", -0.2)], Some("b"), "above 0"),
            (&[("a", f64::NAN), ("b", 0.2)], Some("a"), "above 0"),
        ] {
            let (found, problem) = problem(named, &["a", "b"]).unwrap();
            assert!(found.as_deref() == name && problem.contains(expected), "{found:?}: {problem}");
        }
        assert!(problem(&[("a", 1.0)], &["a"]).unwrap().1.contains("one target"));
    }

    #[test]
    fn pools_and_targets_have_numbers() {
        let two = model(&[("prose", 0.25), ("code", 0.75)]);
        let quotas = Quotas { sources: shares(&[("web", 0.5), ("books", 0.2)]), ..Quotas::default() };
        let division = Division::of(&quotas, &two);
        assert_eq!((division.n_pools(), division.n_targets(), division.is_whole()), (3, 2, false));
        assert_eq!(["books", "web", "none"].map(|source| division.pool_of(Some(source))), [1, 2, 0]);
        assert_eq!((division.pool_of(None), division.source_of(0), division.source_of(2)), (0, None, Some("web")));
        assert_eq!(
            (division.targets(), division.target_shares()),
            (&["prose".to_owned(), "code".to_owned()][..], &[0.25, 0.75][..])
        );
        let resolved = quotas.of_model(&two);
        assert_eq!(resolved.proportions, shares(&[("code", 0.75), ("prose", 0.25)]));
        assert_eq!(Division::of(&resolved, &two), division);
        let given = Quotas { proportions: shares(&[("code", 0.5), ("prose", 0.5)]), ..resolved };
        assert_eq!(Division::of(&given, &two).target_shares(), [0.5, 0.5]);
        // One target is what it was, whatever it is called.
        let one = model(&[("code", 1.0)]);
        assert_eq!(Division::of(&Quotas::default().of_model(&one), &one), Division::whole());
        assert!(Division::whole().is_whole() && Quotas::default().of_model(&one).is_empty());
    }

    /// What is recorded is read back to the last bit, and what nobody set is not recorded.
    #[test]
    fn quotas_are_recorded() {
        let quotas = Quotas { sources: shares(&[("web", 0.1 + 0.2), ("c", 1.0 / 3.0)]), ..Quotas::default() };
        let json = serde_json::to_string(&quotas).unwrap();
        assert_eq!(serde_json::from_str::<Quotas>(&json).unwrap(), quotas);
        assert!(!json.contains("proportions") && !json.contains("field"), "{json}");
        let by_field = Quotas { field: Some("language".into()), ..quotas };
        let json = serde_json::to_string(&by_field).unwrap();
        assert_eq!(serde_json::from_str::<Quotas>(&json).unwrap(), by_field);
    }

    /// Whoever reads a record and whoever decides its window mean the same pools.
    #[test]
    fn pools_of_a_field_have_the_numbers_of_the_division() {
        let sources = shares(&[("en", 0.5), ("de", 0.2), ("17", 0.1), ("é", 0.1)]);
        let quotas = Quotas { field: Some("language".into()), sources, ..Quotas::default() };
        let division = Division::of(&quotas, &model(&[("code", 1.0)]));
        for value in ["17", "de", "en", "é", "", "other"].map(Some).into_iter().chain([None]) {
            assert_eq!(usize::from(quotas.pool_of(value)), division.pool_of(value), "{value:?}");
        }
        assert_eq!(
            [Some("de"), None].map(|value| quotas.pool_name(value)),
            ["language de", "all other values of language"]
        );
        let of_sources = Quotas { field: None, ..quotas };
        assert_eq!([Some("de"), None].map(|value| of_sources.pool_name(value)), ["source de", "all other sources"]);
    }
}
