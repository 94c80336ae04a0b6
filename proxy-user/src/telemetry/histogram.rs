//! How often which values came.

/// Counts of values in steps, as Prometheus wants them.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// The upper bound of each step, in order.
    bounds: &'static [f64],
    /// How many values are in each step, and in none.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// Without values.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    /// Takes a value into account.
    pub fn observe(&mut self, value: f64) {
        let step = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(step) {
            *count += 1;
        }
        self.sum += value;
    }

    /// How many values there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What they come to together.
    #[must_use]
    pub const fn sum(&self) -> f64 {
        self.sum
    }

    /// Each step's upper bound, and how many values are no larger.
    pub fn steps(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds
            .iter()
            .zip(&self.counts)
            .scan(0, |below, (bound, count)| {
                *below += count;
                Some((*bound, *below))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_its_step_and_in_all_above() {
        let mut histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        for value in [0.5, 1.0, 1.5, 4.0, 9.0] {
            histogram.observe(value);
        }
        let steps: Vec<_> = histogram.steps().collect();
        assert_eq!(steps, [(1.0, 2), (2.0, 3), (4.0, 4)]);
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum() - 16.0).abs() < 1e-9);
    }
}
