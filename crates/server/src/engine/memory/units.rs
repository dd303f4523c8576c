//! Bytes of the units of memory.

pub(super) const KIB: f64 = 1024.0;
pub(super) const MIB: f64 = 1024.0 * KIB;
pub(super) const GIB: f64 = 1024.0 * MIB;
