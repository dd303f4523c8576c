//! Two answers side by side, on a terminal that is wide enough.

use console::{Term, measure_text_width};

/// The narrowest terminal that shows two answers side by side.
const WIDE: usize = 100;
/// Between the columns.
const GAP: &str = " │ ";

/// Columns of the terminal behind standard output, where it is one and wide enough.
pub(super) fn wide_terminal() -> Option<usize> {
    let (_, width) = Term::stdout().size_checked()?;
    Some(usize::from(width)).filter(|width| *width >= WIDE)
}

/// Two texts, each in half of `width` and with its name above it.
pub(super) fn side_by_side([left, right]: [(&str, &str); 2], width: usize) -> String {
    let column = width.saturating_sub(measure_text_width(GAP)) / 2;
    let lines = |(name, text): (&str, &str)| {
        let mut lines = vec![format!("── {name}")];
        lines.extend(text.lines().flat_map(|line| wrapped(line, column)));
        lines
    };
    let (left, right) = (lines(left), lines(right));
    let mut shown = String::new();
    for row in 0..left.len().max(right.len()) {
        let [left, right] = [&left, &right].map(|lines| lines.get(row).map_or("", |line| line));
        let blanks = " ".repeat(column.saturating_sub(measure_text_width(left)));
        shown += format!("{left}{blanks}{GAP}{right}").trim_end();
        shown.push('\n');
    }
    shown
}

/// A line in pieces of at most `column` columns, cut at blanks where there are some. Chinese characters take two columns.
fn wrapped(line: &str, column: usize) -> Vec<String> {
    let column = column.max(2);
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for word in line.split_inclusive(' ') {
        if measure_text_width(&piece) + measure_text_width(word.trim_end()) > column {
            end(&mut pieces, &mut piece);
        }
        for letter in word.chars() {
            let mut text = [0; 4];
            let letter = &*letter.encode_utf8(&mut text);
            let is_full = measure_text_width(&piece) + measure_text_width(letter) > column;
            match (is_full, letter) {
                // A blank at the end of a line takes no room.
                (true, " ") => {}
                (true, _) => {
                    end(&mut pieces, &mut piece);
                    piece.push_str(letter);
                }
                (false, _) => piece.push_str(letter),
            }
        }
    }
    if !piece.is_empty() || pieces.is_empty() {
        pieces.push(piece);
    }
    pieces
}

fn end(pieces: &mut Vec<String>, piece: &mut String) {
    if !piece.is_empty() {
        pieces.push(std::mem::take(piece).trim_end().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_keeps_to_its_column() {
        let [short, long] = [
            "One.\n\nTwo.",
            "A cat sat down 在北京的街上看书。 abcdefghijklmnopqrstuvwxyz",
        ];
        let shown = side_by_side([("base", short), ("adapter", long)], 31);
        let expected = "\
── base        │ ── adapter
One.           │ A cat sat down
               │ 在北京的街上看
Two.           │ 书。
               │ abcdefghijklmn
               │ opqrstuvwxyz
";
        assert_eq!(shown, expected);
        let swapped = side_by_side([("base", long), ("adapter", short)], 31);
        assert!(swapped.contains("在北京的街上看 │\n"), "{swapped}");
        assert!(swapped.lines().all(|line| measure_text_width(line) <= 31));
        assert_eq!(wrapped("", 10), [""]);
    }
}
