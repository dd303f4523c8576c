//! Memory maps of weight files: the one place of this crate that needs `unsafe` for I/O.

use std::fs::File;

use memmap2::Mmap;

/// Maps a file read-only.
///
/// # Errors
/// What the operating system says.
#[allow(unsafe_code)]
pub(crate) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only ever read. If another process truncates the file while it is mapped,
    // reads fault, as for every program that maps its weights; a file that is replaced by rename,
    // which is how this project writes, keeps the old contents alive.
    unsafe { Mmap::map(file) }
}
