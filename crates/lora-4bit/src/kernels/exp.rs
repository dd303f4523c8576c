//! The exponential function of activations and probabilities.

/// `e^x` within 2 units in the last place, without a branch or a call, so that the compiler can vectorise a loop of it.
/// Arguments are clamped to `-87..=88`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Cephes' expf: e^x = 2^n * e^r with |r| <= ln(2)/2, and a polynomial of degree 5 for e^r.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 * 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN2_HI - n * LN2_LO;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    // The low bits of a float near 1.5 * 2^23 are the integer that was added to it.
    let power = f32::from_bits(((n + (ROUND + 127.0)).to_bits()) << 23);
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_agrees_with_f64() {
        for i in 0..17_500 {
            let x = -87.0 + i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) = {}, not {expected}", exp(x));
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::NAN).is_nan());
        assert_eq!(exp(1000.0), exp(88.0));
    }
}
