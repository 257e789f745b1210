//! What a benchmark says: tables and curves for people (`benchmarks.md`), figures for scripts (`benchmarks.json`).

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::curve::Curve;

/// The findings of one section.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// How it was measured, a paragraph each; Markdown.
    pub(crate) method: Vec<String>,
    pub(crate) tables: Vec<Table>,
    pub(crate) curves: Vec<Curve>,
    pub(crate) figures: Vec<Figure>,
    /// What profiles show to stand in the way of targets that are hard to reach; Markdown, a sentence or two each.
    pub(crate) obstacles: &'static [&'static str],
}

/// A table of the report. The first column is to the left, the others are quantities.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A figure of `benchmarks.json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// Section, case and quantity, such as `packet: established IPv4, xdp`.
    pub(crate) name: String,
    /// The median of the rounds.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What it is compared with: the name of another case of the same run.
    pub(crate) relative_to: Option<String>,
    /// The median of the rounds' ratios to that.
    pub(crate) ratio: Option<f64>,
    /// What the ratio, or without one the value, should be.
    pub(crate) target: Option<Target>,
    /// Whether it is.
    pub(crate) met: Option<bool>,
}

/// A bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Figure {
    /// A figure that stands alone.
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let name = name.into();
        Self { name, value, unit, relative_to: None, ratio: None, target: None, met: None }
    }

    /// Compares it with another case of the same run.
    pub(crate) fn relative_to(mut self, name: impl Into<String>, ratio: f64) -> Self {
        self.relative_to = Some(name.into());
        self.ratio = Some(ratio);
        self
    }

    /// What it should be. After [`Figure::relative_to`] the bound is for the ratio.
    pub(crate) fn target(mut self, target: Target) -> Self {
        let value = self.ratio.unwrap_or(self.value);
        self.met = Some(match target {
            Target::AtMost(bound) => value <= bound,
            Target::AtLeast(bound) => value >= bound,
        });
        self.target = Some(target);
        self
    }
}

impl Figure {
    /// [`Figure::target`], if there were enough rounds to judge by; else the bound is only named.
    pub(crate) fn target_after(self, rounds: usize, target: Target) -> Self {
        if rounds >= ROUNDS_TO_JUDGE { self.target(target) } else { Self { target: Some(target), ..self } }
    }
}

/// Rounds without which a figure that drifts from second to second says nothing of a target.
const ROUNDS_TO_JUDGE: usize = 3;

/// Least, middle and greatest of some rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one figure.
    pub(crate) fn of(figures: &[f64]) -> Self {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { min: sorted[0], median, max: sorted[sorted.len() - 1] }
    }

    /// Of the rounds' ratios: each figure by the one that the same round has of the other case.
    pub(crate) fn of_ratios(figures: &[f64], others: &[f64]) -> Self {
        let ratios: Vec<f64> = figures.iter().zip(others).map(|(figure, other)| figure / other).collect();
        Self::of(&ratios)
    }

    /// As `median [min to max]`.
    pub(crate) fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} [{:.decimals$} to {:.decimals$}]", self.median, self.min, self.max)
    }
}

/// Writes `benchmarks.md`, `benchmarks.json` and the curves' `benchmarks-NAME.svg` into `directory`.
pub(crate) fn write(directory: &Path, preface: &str, sections: &[Section]) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let put = |name: &str, content: &str| {
        let path = directory.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    };
    for curve in sections.iter().flat_map(|section| &section.curves) {
        put(&curve.file_name(), &curve.svg()?)?;
    }
    let figures: Vec<&Figure> = sections.iter().flat_map(|section| &section.figures).collect();
    let mut lines: Vec<String> = Vec::new();
    for figure in &figures {
        lines.push(serde_json::to_string(figure)?);
    }
    put("benchmarks.json", &format!("[\n{}\n]\n", lines.join(",\n")))?;
    put("benchmarks.md", &markdown(preface, sections))
}

fn markdown(preface: &str, sections: &[Section]) -> String {
    let mut text = preface.to_owned();
    let aimed: Vec<&Figure> = sections
        .iter()
        .flat_map(|section| &section.figures)
        .filter(|figure| figure.target.is_some())
        .collect();
    if !aimed.is_empty() {
        text.push_str("\n## Targets\n\n");
        text.push_str(&targets(&aimed).markdown());
        text.push_str("\nWhere one is not reached, this stands in the way:\n\n");
        for obstacle in sections.iter().flat_map(|section| section.obstacles) {
            let _ = writeln!(text, "- {obstacle}");
        }
    }
    for section in sections {
        let _ = write!(text, "\n## {} (`cargo xtask bench {}`)\n", section.title, section.name);
        for paragraph in &section.method {
            let _ = write!(text, "\n{paragraph}\n");
        }
        for table in &section.tables {
            let _ = write!(text, "\n### {}\n\n{}", table.title, table.markdown());
        }
        for curve in &section.curves {
            let _ = write!(text, "\n![{}]({})\n", curve.title, curve.file_name());
        }
    }
    text
}

/// What was aimed at.
pub(crate) fn targets(figures: &[&Figure]) -> Table {
    let rows = figures.iter().map(|figure| {
        let value = format!("{} {}", number(figure.value), figure.unit);
        let ratio = figure.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let relative_to = figure.relative_to.clone().unwrap_or_else(|| "-".to_owned());
        let target = figure.target.map_or_else(String::new, |target| target.to_string());
        let met = match figure.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "not judged",
        };
        vec![figure.name.clone(), value, relative_to, ratio, target, met.to_owned()]
    });
    Table {
        title: "Targets".to_owned(),
        columns: ["what", "measured", "relative to", "ratio", "target", "met"].map(str::to_owned).into(),
        rows: rows.collect(),
    }
}

/// A quantity with about three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

impl Table {
    fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|---", self.columns.join(" | "));
        for _ in 1..self.columns.len() {
            text.push_str("|---:");
        }
        text.push_str("|\n");
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    /// For the terminal.
    pub(crate) fn print(&self) {
        println!("\n{}", self.title);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.chain([&self.columns[column]]).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in [&self.columns].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let fill = " ".repeat(width.saturating_sub(cell.chars().count()));
                line += &if column == 0 { format!("{cell}{fill}") } else { format!("  {fill}{cell}") };
            }
            println!("{}", line.trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let of = |figures: &[f64]| {
            let Spread { min, median, max } = Spread::of(figures);
            [min, median, max]
        };
        assert_eq!(of(&[3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), [1.0, 2.5, 4.0]);
        assert_eq!(Spread::of_ratios(&[1.0, 6.0, 5.0], &[2.0, 2.0, 2.0]).median, 2.5);
    }

    #[test]
    fn a_target_is_for_the_ratio_if_there_is_one() {
        let figure = Figure::new("a", 30.0, "ns").relative_to("b", 0.6).target(Target::AtMost(0.7));
        assert_eq!(figure.met, Some(true));
        assert_eq!(Figure::new("a", 30.0, "ns").target(Target::AtMost(0.7)).met, Some(false));
        assert_eq!(Figure::new("a", 30.0, "ns").target(Target::AtLeast(30.0)).met, Some(true));
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(json["target"], "<= 0.7");
    }

    #[test]
    fn tables_are_markdown() {
        let table = Table {
            title: "T".to_owned(),
            columns: vec!["case".to_owned(), "ns".to_owned()],
            rows: vec![vec!["one".to_owned(), "1".to_owned()]],
        };
        assert_eq!(table.markdown(), "| case | ns |\n|---|---:|\n| one | 1 |\n");
    }
}
