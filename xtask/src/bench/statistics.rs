//! Medians of few, noisy measurements.

/// Measurements of one quantity, in the order taken.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    fn quantile(&self, q: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        #[expect(
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "0 <= q <= 1, and `last` is small"
        )]
        let index = (q * last as f64).round() as usize;
        sorted.get(index).copied()
    }

    /// The middle value; `None` when there are no samples.
    pub fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// The smallest and the largest.
    pub fn range(&self) -> Option<(f64, f64)> {
        Some((self.quantile(0.0)?, self.quantile(1.0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn median_is_the_middle_value() {
        assert_eq!(Samples(vec![9.0, 1.0, 5.0]).median(), Some(5.0));
        assert_eq!(Samples(vec![9.0, 1.0, 5.0]).range(), Some((1.0, 9.0)));
        assert_eq!(Samples::default().median(), None);
    }
}
