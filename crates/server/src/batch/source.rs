//! Lines of the input, read by a thread of their own.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher as _;
use std::io::{self, BufRead, Read as _};

use tokio::sync::mpsc;

use crate::protocol::body::MAX_BODY_BYTES;

/// Lines that are read ahead: each may have [`MAX_LINE_BYTES`].
const NUM_AHEAD: usize = 1;
/// Longest line: a body and what is around it.
const MAX_LINE_BYTES: usize = MAX_BODY_BYTES + (64 << 10);

/// Where requests come from.
pub type Source = Box<dyn BufRead + Send>;

/// One line.
pub(super) struct Line {
    /// Its number in the file, from 1.
    pub(super) number: usize,
    /// Its length in the file.
    pub(super) num_bytes: usize,
    /// Its bytes, with the line's end if it has one; `None` for a line that is longer than any request.
    pub(super) bytes: Option<Vec<u8>>,
}

/// Lines that are not blank.
pub(super) struct Lines {
    receiver: mpsc::Receiver<io::Result<Line>>,
}

impl Lines {
    /// Begins to read. The thread ends with the input, or once nobody takes lines.
    pub(super) fn start(mut source: Source) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(NUM_AHEAD);
        let read = move || {
            for number in 1.. {
                let line = match read_line(&mut *source, number) {
                    Ok(Some(line)) => Ok(line),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_blank = |line: &Line| {
                    let bytes = line.bytes.as_ref();
                    bytes.is_some_and(|bytes| bytes.trim_ascii().is_empty())
                };
                if line.as_ref().is_ok_and(is_blank) {
                    continue;
                }
                let failed = line.is_err();
                if sender.blocking_send(line).is_err() || failed {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("batch-input".to_owned())
            .spawn(read)?;
        Ok(Self { receiver })
    }

    /// The next line; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<io::Result<Line>> {
        self.receiver.recv().await
    }
}

/// The next line. A longer one than [`MAX_LINE_BYTES`] is skipped, not kept.
fn read_line(source: &mut dyn BufRead, number: usize) -> io::Result<Option<Line>> {
    let mut bytes = Vec::new();
    let limit = MAX_LINE_BYTES as u64 + 1;
    let mut limited = (&mut *source).take(limit);
    let mut num_bytes = limited.read_until(b'\n', &mut bytes)?;
    if num_bytes == 0 {
        return Ok(None);
    }
    let is_whole = bytes.last() == Some(&b'\n') || num_bytes <= MAX_LINE_BYTES;
    if !is_whole {
        num_bytes += source.skip_until(b'\n')?;
    }
    if number == 1 && bytes.starts_with("\u{feff}".as_bytes()) {
        bytes.drain(..3);
    }
    let bytes = is_whole.then_some(bytes);
    Ok(Some(Line {
        number,
        num_bytes,
        bytes,
    }))
}

/// The lines of ids, by two hashes of the id: a million ids take 32 MB, however long they are.
#[derive(Default)]
pub(super) struct Ids {
    lines: HashMap<(u64, u64), usize>,
    hashers: [RandomState; 2],
}

impl Ids {
    /// Notes that a line has this id.
    ///
    /// # Errors
    /// The line that has it already.
    pub(super) fn insert(&mut self, id: &str, line: usize) -> Result<(), usize> {
        let [a, b] = &self.hashers;
        match self.lines.entry((a.hash_one(id), b.hash_one(id))) {
            Entry::Occupied(taken) => Err(*taken.get()),
            Entry::Vacant(free) => {
                free.insert(line);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_file() {
        let mut source: Source = Box::new("\u{feff}{\"a\": 1}\r\n\n{}".as_bytes());
        let mut next = |number| read_line(&mut *source, number).unwrap();
        let line = next(1).unwrap();
        assert_eq!(line.bytes.as_deref(), Some(&b"{\"a\": 1}\r\n"[..]));
        assert_eq!(line.num_bytes, 13);
        assert_eq!(next(2).unwrap().bytes.as_deref(), Some(&b"\n"[..]));
        assert_eq!(next(3).unwrap().bytes.as_deref(), Some(&b"{}"[..]));
        assert!(next(4).is_none());
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let long = vec![b'x'; MAX_LINE_BYTES + 10];
        let text = [&long[..], b"\n{}\n"].concat();
        let mut source: Source = Box::new(io::Cursor::new(text));
        let line = read_line(&mut *source, 1).unwrap().unwrap();
        assert!(line.bytes.is_none());
        assert_eq!(line.num_bytes, MAX_LINE_BYTES + 11);
        let line = read_line(&mut *source, 2).unwrap().unwrap();
        assert_eq!(line.bytes.as_deref(), Some(&b"{}\n"[..]));
    }

    #[test]
    fn an_id_belongs_to_the_line_that_had_it_first() {
        let mut ids = Ids::default();
        assert_eq!(ids.insert("a", 1), Ok(()));
        assert_eq!(ids.insert("b", 2), Ok(()));
        assert_eq!(ids.insert("a", 3), Err(1));
    }
}
