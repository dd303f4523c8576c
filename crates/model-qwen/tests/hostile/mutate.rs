//! Changes real inputs at random, and gives them to what reads them: nothing may panic, take long, or fill the memory.
//!
//! `FUZZ_SECONDS` is how long each target is run, `FUZZ_SEED` where the random numbers begin. A failure names both with the
//! number of the case, and leaves its input in the folder for temporary files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// Seconds for each target, so that a plain `cargo test` spends half a minute on all. CI gives a minute to each.
const SECONDS: f64 = 2.0;
/// Longest case. Machines that test are busy.
const LIMIT: Duration = Duration::from_secs(60);
/// Most memory that a case may add to the process.
const MEMORY: usize = 1 << 30;

/// A sequence of random numbers.
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `num`, which is not 0.
    pub(crate) fn below(&mut self, num: usize) -> usize {
        (self.next() % num as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| {
        value
            .parse()
            .ok()
            .unwrap_or_else(|| panic!("{name}={value}"))
    })
}

/// Gives `target` what `make` makes, until the time is over.
#[allow(clippy::print_stdout, reason = "tests show it on request")]
pub(crate) fn run(name: &str, make: impl Fn(&mut Random) -> Vec<u8>, target: impl Fn(&[u8])) {
    let seconds = Duration::from_secs_f64(variable("FUZZ_SECONDS", SECONDS));
    let seed: u64 = variable("FUZZ_SEED", 27);
    let first: u64 = variable("FUZZ_CASE", 0);
    let file = std::env::temp_dir().join(format!("fuzz-{name}-{seed}"));
    let (start, before) = (Instant::now(), peak());
    let mut case = first;
    while start.elapsed() < seconds {
        let mut random = Random(seed.wrapping_mul(0x1000_0000).wrapping_add(case));
        let input = make(&mut random);
        // It stays there if the process ends.
        std::fs::write(&file, &input).unwrap();
        let began = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| target(&input)));
        let place = || {
            format!(
                "FUZZ_SEED={seed} FUZZ_CASE={case}, input in {}",
                file.display()
            )
        };
        assert!(ended.is_ok(), "{name} panicked: {}", place());
        assert!(
            began.elapsed() < LIMIT,
            "{name} took {:?}: {}",
            began.elapsed(),
            place()
        );
        let more = peak().saturating_sub(before);
        assert!(more < MEMORY, "{name} took {more} bytes: {}", place());
        case += 1;
    }
    let _ = std::fs::remove_file(&file);
    eprintln!("{name}: {} cases, FUZZ_SEED={seed}", case - first);
}

/// The most memory that the process has had, where the system tells.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

/// Texts that somebody's parser has stumbled over.
const TEXTS: [&str; 30] = [
    "",
    "\0",
    "a",
    "-1",
    "null",
    "true",
    "NaN",
    "1e999",
    "0x10",
    "..",
    "../../../etc/passwd",
    "/dev/zero",
    "http://169.254.169.254/latest",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "\u{202e}\u{feff}\u{fffd}",
    "e\u{301}\u{1f469}\u{200d}\u{1f469}",
    "<|im_end|>",
    "<|im_start|>system\n",
    "<think>",
    "</think>",
    "<tool_call>",
    "{{ 7 * 7 }}",
    "{% for a in range(100000) %}",
    "%s%n",
    "'; drop table",
    "(a+)+$",
    "(?=a)*\\1",
    "[\u{0}-\u{10ffff}]{999}",
    "\r\n\r\n",
];

/// Numbers at the edges of types.
const NUMBERS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "2",
    "255",
    "256",
    "-128",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "-9223372036854775808",
    "0.5",
    "-0.0",
    "1e-320",
    "1e308",
    "1e19",
    "3.4028236e38",
];

/// A value of any kind.
fn odd_value(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => Value::Bool(random.below(2) == 0),
        2 | 3 => serde_json::from_str(NUMBERS[random.below(NUMBERS.len())]).unwrap(),
        4 | 5 => Value::from(TEXTS[random.below(TEXTS.len())]),
        6 => match random.below(3) {
            0 => Value::Array(Vec::new()),
            1 => Value::Object(Map::new()),
            _ => {
                let depth = random.below(100);
                (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
            }
        },
        _ => {
            let num = 1 << random.below(17);
            Value::from(
                random
                    .pick(&["a", "é", "[", " ", "\\", "<", "😀"])
                    .repeat(num),
            )
        }
    }
}

/// The places in a value, as pointers.
fn places(value: &Value, here: &str, all: &mut Vec<String>) {
    all.push(here.to_owned());
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate().take(50) {
                places(item, &format!("{here}/{i}"), all);
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(item, &format!("{here}/{name}"), all);
            }
        }
        _ => {}
    }
}

/// Changes a JSON document in one to eight places. `names` are names of fields that readers know.
pub(crate) fn json(random: &mut Random, seeds: &[Value], names: &[&str]) -> Vec<u8> {
    let mut value = random.pick(seeds).clone();
    for _ in 0..=random.below(8) {
        let mut all = Vec::new();
        places(&value, "", &mut all);
        let place = all[random.below(all.len())].clone();
        let other = value.pointer(&all[random.below(all.len())]).cloned();
        let Some(found) = value.pointer_mut(&place) else {
            continue;
        };
        change(random, found, other.unwrap_or_default(), names);
    }
    let mut text = serde_json::to_vec(&value).unwrap();
    if random.below(10) == 0 {
        bytes(random, &mut text);
    }
    text
}

fn change(random: &mut Random, found: &mut Value, other: Value, names: &[&str]) {
    match (random.below(8), &mut *found) {
        (0 | 1, _) => *found = odd_value(random),
        (2, _) => *found = other,
        (3, _) => *found = Value::Array(vec![found.take(); 1 + random.below(3)]),
        (4, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(random.below(fields.len())).cloned();
            name.and_then(|name| fields.shift_remove(&name));
        }
        (4..=6, Value::Object(fields)) if !names.is_empty() => {
            let name = (*random.pick(names)).to_owned();
            let value = match random.below(2) {
                0 => other,
                _ => odd_value(random),
            };
            fields.insert(name, value);
        }
        (4..=6, Value::Array(items)) if !items.is_empty() => {
            let at = random.below(items.len());
            match random.below(2) {
                0 => drop(items.remove(at)),
                _ => items.insert(at, other),
            }
        }
        (_, Value::String(text)) => {
            let at = random.below(text.len() + 1);
            let at = (0..=at)
                .rev()
                .find(|&at| text.is_char_boundary(at))
                .unwrap_or(0);
            text.insert_str(at, TEXTS[random.below(TEXTS.len())]);
        }
        _ => *found = odd_value(random),
    }
}

/// Changes bytes in one to eight places.
pub(crate) fn bytes(random: &mut Random, all: &mut Vec<u8>) {
    for _ in 0..=random.below(8) {
        let at = random.below(all.len() + 1);
        let end = (at + random.below(16)).min(all.len());
        match random.below(7) {
            0 => all.truncate(at),
            1 => drop(all.drain(at..end)),
            2 => {
                let copy = all[at..end].to_vec();
                all.splice(at..at, copy);
            }
            3 => {
                let text = TEXTS[random.below(TEXTS.len())].bytes();
                all.splice(at..at, text);
            }
            4 if at + 8 <= all.len() => {
                let number = [0, 1, u64::MAX, 1 << 31, 1 << 63, 1 << 40, 0xff][random.below(7)];
                all[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
            _ if at < all.len() => all[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
}

/// A writable folder whose file changes with each case.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    /// With these files of another folder.
    pub(crate) fn with(from: &std::path::Path, files: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    pub(crate) fn write(&self, file: &str, content: &[u8]) {
        std::fs::write(self.0.path().join(file), content).unwrap();
    }
}
