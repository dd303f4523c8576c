//! Text files of a user: settings, prompts, schemas.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes, at most: whatever is longer is another kind of file, such as a device that never ends.
const MAX: u64 = 64 << 20;

/// The text of a file.
///
/// # Errors
/// A file that cannot be read, is too large, or is no UTF-8.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(MAX + 1).read_to_string(&mut text)?;
    match length as u64 > MAX {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("expected at most {} MiB of text, found more", MAX >> 20),
        )),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read(&path).unwrap(), "text");
        #[cfg(unix)]
        {
            let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
            assert!(error.contains("at most 64 MiB"), "{error}");
        }
    }
}
