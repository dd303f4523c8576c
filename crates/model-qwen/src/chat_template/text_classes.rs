//! What Python's methods of strings say of characters, and how they change their case.

use super::python;

/// Digits of Python that are not decimal, such as those above a line and in circles.
const DIGITS: [(char, char); 20] = [
    ('\u{b2}', '\u{b3}'),
    ('\u{b9}', '\u{b9}'),
    ('\u{1369}', '\u{1371}'),
    ('\u{19da}', '\u{19da}'),
    ('\u{2070}', '\u{2070}'),
    ('\u{2074}', '\u{2079}'),
    ('\u{2080}', '\u{2089}'),
    ('\u{2460}', '\u{2468}'),
    ('\u{2474}', '\u{247c}'),
    ('\u{2488}', '\u{2490}'),
    ('\u{24ea}', '\u{24ea}'),
    ('\u{24f5}', '\u{24fd}'),
    ('\u{24ff}', '\u{24ff}'),
    ('\u{2776}', '\u{277e}'),
    ('\u{2780}', '\u{2788}'),
    ('\u{278a}', '\u{2792}'),
    ('\u{10a40}', '\u{10a43}'),
    ('\u{10e60}', '\u{10e68}'),
    ('\u{11052}', '\u{1105a}'),
    ('\u{1f100}', '\u{1f10a}'),
];

/// The zeros of the scripts; their nine other digits follow.
const ZEROS: [u32; 65] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
    0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50,
    0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650,
    0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50,
    0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// White space of Python, which has four separators more than Rust.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// What a method `is…` says of a text.
pub(super) fn is_all(text: &str, method: &str) -> bool {
    match method {
        "isprintable" => text.chars().all(python::is_printable),
        "istitle" => is_title(text),
        "isidentifier" => {
            let is_start = |c: char| c.is_alphabetic() || c == '_';
            text.starts_with(is_start) && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
        _ => {
            let is_one = |c: char| match method {
                "isspace" => is_space(c),
                "isdigit" => is_decimal(c) || is_other_digit(c),
                _ => is_decimal(c),
            };
            !text.is_empty() && text.chars().all(is_one)
        }
    }
}

fn is_other_digit(c: char) -> bool {
    DIGITS
        .iter()
        .any(|&(first, last)| (first..=last).contains(&c))
}

/// Whether a character is one of the ten digits of a script.
fn is_decimal(c: char) -> bool {
    // Decimal digits are in runs of ten, and have no other form.
    c.is_ascii_digit() || !c.is_ascii() && is_in_run_of_digits(c)
}

fn is_in_run_of_digits(c: char) -> bool {
    ZEROS
        .iter()
        .any(|&zero| (zero..zero + 10).contains(&u32::from(c)))
}

/// Whether each word begins with an upper case letter, and has no others.
fn is_title(text: &str) -> bool {
    let (mut is_behind, mut has_any) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() {
            if is_behind {
                return false;
            }
            (is_behind, has_any) = (true, true);
        } else if c.is_lowercase() {
            if !is_behind {
                return false;
            }
            (is_behind, has_any) = (true, true);
        } else {
            is_behind = false;
        }
    }
    has_any
}

/// `title`, `swapcase` or `casefold`.
pub(super) fn recased(text: &str, method: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_behind = false;
    for c in text.chars() {
        let is_cased = c.is_lowercase() || c.is_uppercase();
        match method {
            "title" if is_behind => out.extend(c.to_lowercase()),
            "title" => out.extend(c.to_uppercase()),
            "swapcase" if c.is_uppercase() => out.extend(c.to_lowercase()),
            "swapcase" => out.extend(c.to_uppercase()),
            _ => casefold(&mut out, c),
        }
        is_behind = is_cased;
    }
    out
}

fn casefold(out: &mut String, c: char) {
    match c {
        'ı' => out.push(c),
        'ẞ' => out.push_str("ss"),
        // Cherokee folds to upper case.
        '\u{13a0}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' => out.extend(c.to_uppercase()),
        c => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
    }
}
