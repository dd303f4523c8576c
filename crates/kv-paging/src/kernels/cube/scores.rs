//! Scores of keys.

/// Lower than any score.
pub(super) const LOWEST: f32 = -3.0e38;
/// log2(e): exponentials are powers of two.
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
