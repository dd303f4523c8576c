//! Memory maps of weight files: the one place of this crate that needs `unsafe` for I/O.

use std::fs::File;
use std::ops::Range;

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

/// Takes the pages of a range out of this process's memory; whoever reads them again gets them from the file.
///
/// Only a hint: where the system has no such call, or refuses it, nothing happens.
#[allow(unsafe_code)]
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the map is read-only and backed by a file, so that dropped pages come back with the same contents.
        let dropped = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        if let Err(error) = dropped {
            tracing::debug!(%error, "cannot release pages of a weight file");
        }
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}
