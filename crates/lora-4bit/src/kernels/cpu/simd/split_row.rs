//! Rows of integers of 15 bits, in two parts, for products with rows of bytes.

/// Bytes that go together; rows are padded to a multiple of it.
pub(crate) const STEP: usize = 64;

/// Rows of bytes are multiplied in multiples of this.
pub(crate) const W_ROWS: usize = 32;

/// A row of `x` in two parts: `128 * high + low`.
#[derive(Clone, Debug)]
pub(crate) struct SplitRow {
    /// `[inner]`.
    pub(crate) high: Vec<i8>,
    /// `[inner]`.
    pub(crate) low: Vec<i8>,
    /// Sum of all values.
    pub(crate) sum: i64,
}

impl SplitRow {
    /// The largest value: both parts then stay within 64, and the products of two of them with bytes within 16 bits.
    pub(crate) const MAX: f32 = 8_000.0;

    /// `values` of at most [`Self::MAX`], padded with zeros to `inner`.
    pub(crate) fn new(values: impl Iterator<Item = i32>, inner: usize) -> Self {
        let (mut high, mut low, mut sum) = (Vec::new(), Vec::new(), 0);
        for value in values {
            let upper = (value + 64) >> 7;
            high.push(upper as i8);
            low.push((value - 128 * upper) as i8);
            sum += i64::from(value);
        }
        high.resize(inner, 0);
        low.resize(inner, 0);
        Self { high, low, sum }
    }
}
