//! Output that threads write to together.

/// A pointer shared by tiles that each write their own rows.
#[derive(Clone, Copy)]
pub(super) struct SharedMut(pub(super) *mut f32);

// SAFETY: only `get` hands the pointer out, and each thread writes through it to rows that no
// other thread touches.
unsafe impl Send for SharedMut {}

// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(super) fn get(&self) -> *mut f32 {
        self.0
    }
}
