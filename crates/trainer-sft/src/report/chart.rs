//! Curves and bars as SVG.

use std::fmt::Write as _;

use super::escape::escape;

/// Size of a picture, and of the room for its labels.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;
/// Points of a curve that are drawn: more than there are pixels.
const MAX_POINTS: usize = 1440;

/// Colours, in the order of the curves.
pub(super) const STYLE: &str = "svg{font:12px system-ui,sans-serif;fill:currentColor}\
.grid{stroke:currentColor;opacity:.15}.s0{--c:#0072b2}.s1{--c:#d55e00}.s2{--c:#009e73}.s3{--c:#cc79a7}\
polyline{fill:none;stroke:var(--c);stroke-width:1.6}circle,rect{fill:var(--c)}";

/// One curve.
#[derive(Debug)]
pub(super) struct Series {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// The finite ones of these points; where there are very many, means of neighbours.
    pub(super) fn new(name: &'static str, points: impl Iterator<Item = (f64, f64)>) -> Self {
        let all: Vec<_> = points
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect();
        let size = all.len().div_ceil(MAX_POINTS).max(1);
        let mean = |points: &[(f64, f64)]| {
            let count = points.len() as f64;
            let sum = points
                .iter()
                .fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
            (sum.0 / count, sum.1 / count)
        };
        Self {
            name,
            points: all.chunks(size).map(mean).collect(),
        }
    }

    /// Whether it has no point.
    pub(super) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// Curves over the steps of a run.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) series: &'a [Series],
}

/// Where values are in a picture.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let part = |value: f64, (low, high): (f64, f64)| (value - low) / (high - low);
        (
            LEFT + part(x, self.x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - part(y, self.y) * (HEIGHT - TOP - BOTTOM),
        )
    }

    /// Lines and labels.
    fn draw(&self, svg: &mut String) {
        for y in ticks(self.y) {
            let (_, at) = self.at((self.x.0, y));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                short(y)
            );
        }
        for x in ticks(self.x) {
            let (at, _) = self.at((x, self.y.0));
            let _ = write!(
                svg,
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM + 18.0,
                short(x)
            );
        }
    }
}

impl Chart<'_> {
    /// The picture; empty where there are no points.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let Some(x) = range(points().map(|point| point.0)) else {
            return String::new();
        };
        let Some(y) = range(points().map(|point| point.1)) else {
            return String::new();
        };
        let axes = Axes { x, y };
        let mut svg = start(self.title);
        axes.draw(&mut svg);
        let mut legend = WIDTH - RIGHT;
        let drawn = self.series.iter().enumerate();
        for (index, series) in drawn.filter(|(_, series)| !series.points.is_empty()) {
            let _ = write!(svg, "<g class=\"s{index}\"><polyline points=\"");
            let places: Vec<_> = series.points.iter().map(|point| axes.at(*point)).collect();
            for (x, y) in &places {
                let _ = write!(svg, "{x:.1},{y:.1} ");
            }
            svg.push_str("\"/>");
            if places.len() <= 40 {
                for (x, y) in &places {
                    let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>");
                }
            }
            let _ = write!(
                svg,
                "<text x=\"{legend}\" y=\"18\" text-anchor=\"end\" style=\"fill:var(--c)\">{}</text></g>",
                series.name
            );
            legend -= 90.0;
        }
        svg + "</svg>\n"
    }
}

/// How often values of equal ranges occur.
#[derive(Debug)]
pub(super) struct Bars<'a> {
    pub(super) title: &'a str,
    /// Of the values from `i * width` to below `(i + 1) * width`.
    pub(super) counts: &'a [usize],
    pub(super) width: usize,
}

impl Bars<'_> {
    /// The picture; empty where nothing occurs.
    pub(super) fn svg(&self) -> String {
        let most = self.counts.iter().max().copied().unwrap_or(0);
        if most == 0 {
            return String::new();
        }
        let axes = Axes {
            x: (0.0, (self.counts.len() * self.width) as f64),
            y: (0.0, most as f64),
        };
        let mut svg = start(self.title);
        axes.draw(&mut svg);
        svg.push_str("<g class=\"s0\">");
        for (index, &count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let (from, to) = (index * self.width, (index + 1) * self.width);
            let (left, top) = axes.at((from as f64, count as f64));
            let (right, bottom) = axes.at((to as f64, 0.0));
            let _ = write!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{from} to {}: {count}</title></rect>",
                (right - left - 1.0).max(0.5),
                bottom - top,
                to - 1
            );
        }
        svg + "</g></svg>\n"
    }
}

fn start(title: &str) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\
         <title>{title}</title><text x=\"{LEFT}\" y=\"18\" font-weight=\"bold\">{title}</text>"
    )
}

/// Lowest and highest value, apart from each other.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    match low < high {
        true => Some((low, high)),
        false if low == high => {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            Some((low - room, high + room))
        }
        false => None,
    }
}

/// About five round numbers in a range.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).take(12).map(|n| n as f64 * step).collect()
}

/// A number in few digits.
fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e6).contains(&size) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks((0.0, 10.0)), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let small = ticks((1.0e-5, 2.0e-4));
        assert!(small.len() >= 3 && small.iter().all(|x| (1e-5..=2.0e-4).contains(x)));
        assert_eq!(
            [0.0, 2.5, 2e-5, 1200.0].map(short),
            ["0", "2.5", "2.0e-5", "1200"]
        );
    }

    #[test]
    fn a_curve_ends_in_its_corners() {
        let series = [Series::new(
            "training",
            [(1.0, 3.0), (5.0, 1.0), (6.0, f64::NAN)].into_iter(),
        )];
        let svg = Chart {
            title: "Loss",
            series: &series,
        }
        .svg();
        assert!(svg.contains("points=\"70.0,34.0 708.0,226.0 \""), "{svg}");
        let many = Series::new("training", (0..100_000).map(|i| (f64::from(i), 1.0)));
        assert!(many.points.len() <= MAX_POINTS && many.points.len() > MAX_POINTS / 2);
        assert!(
            Chart {
                title: "",
                series: &[]
            }
            .svg()
            .is_empty()
        );
    }
}
