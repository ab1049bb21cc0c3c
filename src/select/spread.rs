//! How well a selection covers what it was selected from: the mean distance of a document to the nearest selected one. Pure.
//!
//! AUC_pr (Zheng et al. 2023): a selection covers a share p of the documents with balls of some radius around each of its
//! documents; the smallest such radius, integrated over p from 0 to 1, is E min distance. Lower is better, and it grows as
//! fewer documents are selected: compare it with a random selection of the same size.

use super::sensitivity::squared_distance;

/// Sampled documents, and how near a selected one came to each. Selected documents are shown one by one; parts of them may be
/// shown to copies, which are merged.
#[derive(Debug, Clone, PartialEq)]
pub struct NearestDistances {
    dims: usize,
    points: Vec<f32>,
    squared: Vec<f32>,
}

impl NearestDistances {
    /// # Panics
    /// If points differ in dimensions.
    pub fn new(sample: &[Vec<f32>]) -> Self {
        let dims = sample.first().map_or(0, Vec::len);
        assert!(sample.iter().all(|point| point.len() == dims), "points have different dimensions");
        NearestDistances { dims, points: sample.concat(), squared: vec![f32::INFINITY; sample.len()] }
    }

    /// A document was selected.
    ///
    /// # Panics
    /// If its point has other dimensions.
    pub fn selected(&mut self, point: &[f32]) {
        if self.squared.is_empty() {
            return;
        }
        assert_eq!(point.len(), self.dims, "points have different dimensions");
        for (squared, other) in self.squared.iter_mut().zip(self.points.chunks_exact(self.dims)) {
            *squared = squared.min(squared_distance(point, other));
        }
    }

    /// # Panics
    /// If the other was made of another sample.
    pub fn merge(&mut self, other: &NearestDistances) {
        assert_eq!(self.points, other.points, "distances of different samples");
        self.squared.iter_mut().zip(&other.squared).for_each(|(mine, other)| *mine = mine.min(*other));
    }

    /// Mean distance; `None` without a sample or a selection.
    pub fn auc_pr(&self) -> Option<f64> {
        let sum: f64 = self.squared.iter().map(|squared| f64::from(*squared).sqrt()).sum();
        let mean = sum / self.squared.len() as f64;
        mean.is_finite().then_some(mean)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points() -> impl Strategy<Value = Vec<Vec<f32>>> {
        proptest::collection::vec(proptest::collection::vec(-2.0f32..2.0, 11..=11), 0..30)
    }

    proptest! {
        #[test]
        fn it_is_the_mean_of_the_least_distances(sample in points(), selected in points(), cut in 0usize..30) {
            let cut = cut.min(selected.len());
            let mut parts = [NearestDistances::new(&sample), NearestDistances::new(&sample)];
            selected[..cut].iter().for_each(|point| parts[0].selected(point));
            selected[cut..].iter().for_each(|point| parts[1].selected(point));
            let [mut whole, part] = parts;
            whole.merge(&part);
            let distance = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
            };
            let least = |point: &Vec<f32>| selected.iter().map(|s| distance(s, point)).fold(f64::INFINITY, f64::min);
            let mean = sample.iter().map(least).sum::<f64>() / sample.len() as f64;
            match whole.auc_pr() {
                Some(found) => prop_assert!((found - mean).abs() < 1e-5, "{} for {}", found, mean),
                None => prop_assert!(sample.is_empty() || selected.is_empty()),
            }
        }
    }

    #[test]
    fn what_is_selected_is_no_distance_away() {
        let sample = vec![vec![0.0, 0.0], vec![3.0, 4.0]];
        let mut distances = NearestDistances::new(&sample);
        assert_eq!(distances.auc_pr(), None);
        distances.selected(&[0.0, 0.0]);
        assert_eq!(distances.auc_pr(), Some(2.5));
        distances.selected(&[3.0, 4.0]);
        assert_eq!(distances.auc_pr(), Some(0.0));
    }
}
