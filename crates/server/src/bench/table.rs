//! Lines of 40 and 10 characters, as vLLM prints them.

/// A text in the making.
#[derive(Default)]
pub(super) struct Table(String);

impl Table {
    /// What has been written.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    pub(super) fn line(&mut self, line: &str) {
        self.0.push_str(line.trim_end());
        self.0.push('\n');
    }

    pub(super) fn heading(&mut self, heading: &str, fill: char) {
        let fill_len = 50_usize.saturating_sub(heading.chars().count());
        let fill = |num: usize| fill.to_string().repeat(num);
        self.line(&format!(
            "{}{heading}{}",
            fill(fill_len / 2),
            fill(fill_len - fill_len / 2)
        ));
    }

    pub(super) fn count(&mut self, name: &str, number: usize) {
        self.line(&format!("{name:<40} {number:<10}"));
    }

    pub(super) fn number(&mut self, name: &str, number: f64) {
        self.line(&format!("{name:<40} {number:<10.2}"));
    }
}
