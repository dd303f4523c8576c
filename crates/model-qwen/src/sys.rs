//! What this crate asks of the operating system and of drivers: memory maps, hints for the allocator, the parts of CUDA that
//! must be installed, the priority of a thread, ignored signals, and a sleep that lets a device rest.

mod allocator;
mod background;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod limits;
pub(crate) mod map_file;
mod packaged_cuda;
mod signals;
mod wait;

pub use allocator::{keep_freed_memory, return_freed_memory, share_freed_memory};
pub use background::{Background, stand_back};
pub use packaged_cuda::use_packaged_cuda;
pub use signals::is_ignored;
pub use wait::wait_on_device;
