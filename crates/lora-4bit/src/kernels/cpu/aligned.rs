//! Working memory that starts at a cache line.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use half::bf16;

/// A cache line: a vector or a row of a tile that lies across two is read twice.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; Line::BYTES]);

impl Line {
    const BYTES: usize = 64;
}

/// A number without padding, for which any bits are a value.
///
/// # Safety
///
/// Both are true, and a cache line holds a whole number of them.
pub(super) unsafe trait Number: Copy {}

// SAFETY: numbers of 1, 2 and 4 bytes.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for i16 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for bf16 {}

/// A buffer that only grows.
pub(super) struct Aligned<T> {
    lines: Vec<Line>,
    numbers: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            numbers: PhantomData,
        }
    }
}

impl<T: Number> Aligned<T> {
    /// Zeros, at least so many.
    pub(super) fn zeros(len: usize) -> Self {
        let mut zeros = Self::default();
        zeros.room(len);
        zeros
    }

    /// The first `len` values, whatever they are.
    pub(super) fn room(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(Line::BYTES);
        if self.lines.len() < lines {
            // What was there needn't be moved.
            self.lines = Vec::new();
            self.lines = vec![Line([0; Line::BYTES]); lines];
        }
        &mut self[..len]
    }
}

impl<T: Number> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let len = self.lines.len() * (Line::BYTES / size_of::<T>());
        // SAFETY: the lines hold so many numbers, and any bits are one.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), len) }
    }
}

impl<T: Number> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.lines.len() * (Line::BYTES / size_of::<T>());
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), len) }
    }
}
