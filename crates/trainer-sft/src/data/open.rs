//! A data file as a stream of bytes, whatever it is packed in, and what kind of text it holds.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::error::DataError;
use super::files::{STDIN, unpacked};

const BUFFER: usize = 1 << 18;

/// How the records of a file are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One JSON value per line.
    Lines,
    /// One JSON array.
    Array,
    /// A table with a header, its cells separated by this byte.
    Table(u8),
}

/// Bytes that were read from the disk, for the progress bar.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// That of a pass whose first `bytes` are not read again.
    pub(super) fn after(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Counted<R>(R, Progress);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.0.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Bytes of a record, at most. A short packed file may hold a line of any length, and a device one without an end.
const MAX_RECORD: usize = 64 << 20;

/// How much of a record may still come.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<AtomicUsize>);

impl Room {
    /// A record has ended.
    pub(super) fn refill(&self) {
        self.0.store(MAX_RECORD, Ordering::Relaxed);
    }
}

/// A stream that fails where a record is too long.
struct Bounded<R> {
    stream: R,
    room: Room,
}

impl<R: BufRead> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Bounded<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.room.0.load(Ordering::Relaxed) == 0 {
            let text = format!(
                "expected records of at most {} MiB, found a longer one",
                MAX_RECORD >> 20
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.stream.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        let room = self.room.0.load(Ordering::Relaxed);
        self.room
            .0
            .store(room.saturating_sub(count), Ordering::Relaxed);
        self.stream.consume(count);
    }
}

/// A buffered stream that a thread may own.
pub(super) type Stream = Box<dyn BufRead + Send>;

/// Opens a file, unpacks it, and skips a byte order mark. Its reader refills the room at each record.
///
/// # Errors
/// Files that cannot be read, and kinds that are named instead of read.
pub(super) fn open(path: &Path, progress: &Progress) -> Result<(Stream, Layout, Room), DataError> {
    let io_error = |error| DataError::Io {
        path: path.into(),
        error,
    };
    let raw: Box<dyn Read + Send> = match path.as_os_str() == STDIN {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(io_error)?),
    };
    let mut packed = BufReader::with_capacity(BUFFER, Counted(raw, progress.clone()));
    let start = packed.fill_buf().map_err(io_error)?;
    let mut stream: Stream = if start.starts_with(b"\x1F\x8B") {
        Box::new(BufReader::with_capacity(
            BUFFER,
            MultiGzDecoder::new(packed),
        ))
    } else if start.starts_with(b"\x28\xB5\x2F\xFD") {
        Box::new(BufReader::with_capacity(BUFFER, Frames::Between(packed)))
    } else {
        Box::new(packed)
    };
    let room = Room(Arc::default());
    room.refill();
    stream = Box::new(Bounded {
        stream,
        room: room.clone(),
    });
    let start = stream.fill_buf().map_err(io_error)?;
    let kind = workbook(path, start).or_else(|| unreadable(start));
    if let Some((found, instead)) = kind.or_else(|| arrow_by_name(path, start)) {
        return Err(DataError::Kind {
            path: path.into(),
            found,
            instead,
        });
    }
    if start.starts_with(b"\xFF\xFE\0\0") || start.starts_with(b"\0\0\xFE\xFF") {
        return Err(DataError::Encoding {
            place: path.display().to_string(),
            found: "UTF-32 (convert the file: `iconv -f UTF-32 -t UTF-8`)".into(),
        });
    }
    if start.starts_with(b"\xFF\xFE") || start.starts_with(b"\xFE\xFF") {
        return Err(DataError::Encoding {
            place: path.display().to_string(),
            found: "UTF-16 (convert the file: `iconv -f UTF-16 -t UTF-8`)".into(),
        });
    }
    if start.starts_with(b"\xEF\xBB\xBF") {
        stream.consume(3);
    }
    if let Some(separator) = separator(path) {
        return Ok((stream, Layout::Table(separator), room));
    }
    let (first, skipped) = skip_blank(&mut stream).map_err(io_error)?;
    let layout = match first {
        Some(b'[') => Layout::Array,
        _ => Layout::Lines,
    };
    // Lines count from the first one, blank ones included.
    let blank = BufReader::new(io::Cursor::new(vec![b'\n'; skipped]));
    Ok((Box::new(blank.chain(stream)), layout, room))
}

/// The first byte that is no white space, and how many line breaks come before it. Only white space is consumed.
fn skip_blank(stream: &mut Stream) -> io::Result<(Option<u8>, usize)> {
    let mut lines = 0;
    loop {
        let buffer = stream.fill_buf()?;
        if buffer.is_empty() {
            return Ok((None, lines));
        }
        let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace());
        let count = blank.clone().count();
        lines += blank.filter(|&&byte| byte == b'\n').count();
        let found = buffer.get(count).copied();
        stream.consume(count);
        if found.is_some() {
            return Ok((found, lines));
        }
    }
}

/// `,` for a .csv file, a tab for a .tsv file, also where they are packed.
fn separator(path: &Path) -> Option<u8> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let plain = unpacked(&name);
    if plain.ends_with(".csv") {
        Some(b',')
    } else if plain.ends_with(".tsv") {
        Some(b'\t')
    } else {
        None
    }
}

/// What an Arrow file is called, and what to do with one.
const ARROW: (&str, &str) = (
    "an Arrow file",
    "convert it to JSONL, for example with `Dataset.to_json` of Hugging Face datasets",
);

/// A file that is Arrow's by its name, and holds no text. Streams of earlier versions begin with no mark.
fn arrow_by_name(path: &Path, start: &[u8]) -> Option<(&'static str, &'static str)> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let plain = unpacked(&name);
    let is_named = [".arrow", ".feather"]
        .iter()
        .any(|end| plain.ends_with(end));
    (is_named && start.contains(&0)).then_some(ARROW)
}

/// A workbook of a spreadsheet: a ZIP archive by its name or its first entry, or a file of earlier versions.
fn workbook(path: &Path, start: &[u8]) -> Option<(&'static str, &'static str)> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let is_named = [".xlsx", ".xlsm", ".xls", ".ods"]
        .iter()
        .any(|end| name.ends_with(end));
    let entry = b"[Content_Types].xml";
    let has_entry = || start.windows(entry.len()).any(|bytes| bytes == entry);
    let is_zip = start.starts_with(b"PK\x03\x04");
    let is_old = start.starts_with(b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1");
    (is_old || is_zip && (is_named || has_entry()))
        .then_some(("a workbook of a spreadsheet", "save it as \"CSV UTF-8\""))
}

/// Kinds of files that are known and not read: what they are, and what to do.
fn unreadable(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let to_jsonl = "convert it to JSONL, for example with `python3 -c \"import pandas, sys; \
        pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)\" FILE.parquet FILE.jsonl`";
    let known: [(&[u8], &str, &str); 10] = [
        (b"PAR1", "a Parquet file", to_jsonl),
        (b"ARROW1", ARROW.0, ARROW.1),
        // A stream, as `save_to_disk` writes it: the mark before the length of its first message.
        (b"\xFF\xFF\xFF\xFF", ARROW.0, ARROW.1),
        (b"FEA1", ARROW.0, ARROW.1),
        (
            b"version https://git-lfs.github.com/spec/",
            "a Git LFS pointer",
            "run `git lfs pull` in its repository",
        ),
        (b"PK\x03\x04", "a ZIP archive", "unpack it with `unzip`"),
        (b"\xFD7zXZ\0", "an xz file", "unpack it with `xz -d`"),
        (b"BZh", "a bzip2 file", "unpack it with `bunzip2`"),
        (
            b"SQLite format 3",
            "an SQLite database",
            "export it as JSONL",
        ),
        (b"\x89HDF", "an HDF5 file", "export it as JSONL"),
    ];
    let found = known.iter().find(|(magic, ..)| start.starts_with(magic));
    found.map(|&(_, found, instead)| (found, instead))
}

/// The frames of a Zstandard file, one after the other.
enum Frames<R: Read> {
    Between(R),
    Inside(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    Done,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Self::Done) {
                Self::Done => return Ok(0),
                Self::Between(mut source) => {
                    if source.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(source).map_err(io::Error::other)?;
                    *self = Self::Inside(Box::new(decoder));
                }
                Self::Inside(mut decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 || buffer.is_empty() {
                        *self = Self::Inside(decoder);
                        return Ok(count);
                    }
                    *self = Self::Between(decoder.into_inner());
                }
            }
        }
    }
}
