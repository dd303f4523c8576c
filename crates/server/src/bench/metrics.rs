//! Means, deviations and percentiles, as numpy computes them.

/// The mean; 0 of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    match values.len() {
        0 => 0.0,
        num => values.iter().sum::<f64>() / num as f64,
    }
}

/// The standard deviation of a whole population; 0 of nothing.
pub(super) fn std_dev(values: &[f64]) -> f64 {
    let mean_value = mean(values);
    let squares: Vec<f64> = values.iter().map(|x| (x - mean_value).powi(2)).collect();
    mean(&squares).sqrt()
}

/// The value below which `percent` of a hundred lie, between two values on a straight line; 0 of nothing.
pub(super) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = (percent / 100.0).clamp(0.0, 1.0) * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy 2.3: `np.mean`, `np.std`, `np.percentile` of [4, 1, 3, 2].
    #[test]
    fn they_are_numpys() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(mean(&values), 2.5);
        assert!((std_dev(&values) - 1.118_033_988_749_895).abs() < 1e-12);
        assert_eq!(percentile(&values, 50.0), 2.5);
        assert!((percentile(&values, 99.0) - 3.97).abs() < 1e-12);
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 100.0), 4.0);
        assert_eq!(
            (mean(&[]), std_dev(&[]), percentile(&[], 99.0)),
            (0.0, 0.0, 0.0)
        );
    }
}
