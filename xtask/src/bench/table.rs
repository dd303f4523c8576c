//! A table of measured values, each beside its bar.

use std::fmt;

use anyhow::Result;

/// What a value counts.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// Output tokens of all sequences per second.
    TokensPerSecond,
    Seconds,
    Milliseconds,
    /// A speed as a multiple of another one.
    Ratio,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::TokensPerSecond => format!("{} tok/s", thousands(value)),
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Ratio => format!("{value:.3}"),
        }
    }

    /// Whether a value must be at least its bar, as speeds must, or at most.
    fn is_speed(self) -> bool {
        matches!(self, Self::TokensPerSecond | Self::Ratio)
    }
}

/// One line of the table.
struct Row {
    work: &'static str,
    bar: f64,
    unit: Unit,
    /// One value of each round; none where a program failed.
    values: Vec<Option<f64>>,
}

/// The rows in the order in which they were first recorded.
#[derive(Default)]
pub(super) struct Table(Vec<Row>);

impl Table {
    /// Adds and prints what was measured in one round, or why it was not; the value.
    pub(super) fn record(
        &mut self,
        (work, bar, unit): (&'static str, f64, Unit),
        result: Result<f64>,
    ) -> Option<f64> {
        match &result {
            Ok(value) => println!("{work}: {}", unit.show(*value)),
            Err(error) => println!("{work}: failed: {error:#}"),
        }
        let value = result.ok();
        match self.0.iter_mut().find(|row| row.work == work) {
            Some(row) => row.values.push(value),
            None => self.0.push(Row {
                work,
                bar,
                unit,
                values: vec![value],
            }),
        }
        value
    }

    /// How many values are missing.
    pub(super) fn num_failed(&self) -> usize {
        let values = self.0.iter().flat_map(|row| &row.values);
        values.filter(|value| value.is_none()).count()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| work | measured | bar | reached |")?;
        writeln!(f, "|---|---|---|---|")?;
        for row in &self.0 {
            let show = |value: f64| row.unit.show(value);
            let value = median(row.values.iter().flatten().copied());
            let mut measured = value.map_or_else(|| "failed".to_owned(), show);
            if row.values.len() > 1 {
                let all = row.values.iter();
                let all: Vec<_> = all
                    .map(|value| value.map_or_else(|| "failed".to_owned(), show))
                    .collect();
                measured += &format!(" ({})", all.join(", "));
            }
            let is_reached = value.is_some_and(|value| match row.unit.is_speed() {
                true => value >= row.bar,
                false => value <= row.bar,
            });
            let sign = if row.unit.is_speed() { "≥" } else { "≤" };
            let (work, bar) = (row.work, show(row.bar));
            let reached = if is_reached { "yes" } else { "no" };
            writeln!(f, "| {work} | {measured} | {sign} {bar} | {reached} |")?;
        }
        Ok(())
    }
}

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(0.5 * (values[last / 2] + values[last.div_ceil(2)]))
}

/// A whole number with a comma between its thousands.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn shows_medians_beside_bars() {
        let mut table = Table::default();
        let (speed, time) = (
            ("speed", 14_000.0, Unit::TokensPerSecond),
            ("time", 4.0, Unit::Seconds),
        );
        for (value, seconds) in [(13_900.0, Ok(3.5)), (14_200.0, Err(anyhow!("ended")))] {
            table.record(speed, Ok(value));
            table.record(time, seconds);
        }
        let expected = "\
| work | measured | bar | reached |
|---|---|---|---|
| speed | 14,050 tok/s (13,900 tok/s, 14,200 tok/s) | ≥ 14,000 tok/s | yes |
| time | 3.50 s (3.50 s, failed) | ≤ 4.00 s | yes |
";
        assert_eq!(table.to_string(), expected);
        assert_eq!(table.num_failed(), 1);
    }

    #[test]
    fn separates_thousands() {
        assert_eq!(
            [0.0, 999.4, 1000.0, 1_234_567.0].map(thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
    }
}
