//! Weights that sum to a whole with none above a bound. All are multiples of the mean weight: they sum to their number.

/// exp(preference / temperature), normalised, and projected onto the weights of which none is above `cap` (at least 1).
/// Time O(n log n).
///
/// The projection is the one by KL divergence: of the weights v within the cap, those of the least KL(v ‖ w), which are
/// v = min(cap, s · w) for the one s that makes them sum up. It keeps the ratios of all that are below the cap, and is what
/// the softmax itself is, the maximum of Σ v · preference − temperature · KL(v ‖ equal weights), under one more constraint.
/// The Euclidean one adds the same to all that are below the cap, so that the smallest grow by the largest factor.
///
/// Differences of preferences are taken before anything is divided or raised, and in the rest from the best of the rest:
/// whatever the temperature, the largest exponent is 0 and something is left to share.
pub fn capped_softmax(preferences: &[f64], temperature: f64, cap: Option<f64>) -> Vec<f64> {
    let n = preferences.len();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_unstable_by(|&a, &b| preferences[b].total_cmp(&preferences[a]));
    let best_first: Vec<f64> = order.iter().map(|&i| preferences[i]).collect();
    let at_cap = cap.map_or(0, |cap| n_at_cap(&best_first, temperature, cap));

    let left = cap.map_or(n as f64, |cap| n as f64 - at_cap as f64 * cap).max(0.0);
    let rest = &best_first[at_cap..];
    let parts: Vec<f64> = rest.iter().map(|p| ((p - rest[0]) / temperature).exp()).collect();
    let sum = sum(&parts);
    let cap = cap.unwrap_or(f64::INFINITY);
    let mut multiples = vec![cap; n];
    for (&i, part) in order[at_cap..].iter().zip(parts) {
        multiples[i] = (left * (part / sum)).min(cap);
    }
    multiples
}

/// With what plain addition loses (Neumaier 1974): the weights of a million samples sum up as those of ten do.
fn sum(numbers: &[f64]) -> f64 {
    let (mut sum, mut lost) = (0.0, 0.0);
    for &number in numbers {
        let next: f64 = sum + number;
        lost += if f64::abs(sum) >= number.abs() { (sum - next) + number } else { (number - next) + sum };
        sum = next;
    }
    sum + lost
}

/// How many of the best are cut to the cap: the fewest with which the next one, when the rest share what is left by their
/// softmax, is not above it.
fn n_at_cap(best_first: &[f64], temperature: f64, cap: f64) -> usize {
    let n = best_first.len();
    // Of each place, Σ exp((preference − preference here) / temperature) over it and those after it.
    let mut sums = vec![1.0; n];
    for k in (1..n).rev() {
        sums[k - 1] = 1.0 + ((best_first[k] - best_first[k - 1]) / temperature).exp() * sums[k];
    }
    let mut at_cap = (0..n).find(|&k| n as f64 - k as f64 * cap <= cap * sums[k]).unwrap_or(n);
    // Equal ones are cut together, however the sums were rounded.
    while (1..n).contains(&at_cap) && best_first[at_cap] == best_first[at_cap - 1] {
        at_cap += 1;
    }
    at_cap
}

/// 1 / share for the largest losses until all is given away; equal losses get equal parts. Time O(n log n).
pub fn worst_share(losses: &[f64], share: f64) -> Vec<f64> {
    let n = losses.len() as f64;
    let most = 1.0 / share;
    let mut order: Vec<usize> = (0..losses.len()).collect();
    order.sort_unstable_by(|&a, &b| losses[b].total_cmp(&losses[a]));
    let mut multiples = vec![0.0; losses.len()];
    let mut n_worse = 0;
    for ties in order.chunk_by(|&a, &b| losses[a] == losses[b]) {
        let left = n - n_worse as f64 * most;
        if left <= 0.0 {
            break;
        }
        let each = (left / ties.len() as f64).min(most);
        ties.iter().for_each(|&i| multiples[i] = each);
        n_worse += ties.len();
    }
    multiples
}
