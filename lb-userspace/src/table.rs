//! Tables and quantities for people.
//!
//! No borders, columns two spaces apart, and never wrapped: a line is an entry, whether it ends in a terminal or in
//! a pipe. Headings are bold on a terminal unless `NO_COLOR` (no-color.org) is set.

use std::fmt;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, CellAlignment};

/// Lines of `N` cells below headings.
pub struct Table<const N: usize>(comfy_table::Table);

/// A column's heading, and the side its cells keep to.
pub struct Column {
    heading: &'static str,
    alignment: CellAlignment,
}

/// A column of words.
pub fn left(heading: &'static str) -> Column {
    Column { heading, alignment: CellAlignment::Left }
}

/// A column of quantities.
pub fn right(heading: &'static str) -> Column {
    Column { heading, alignment: CellAlignment::Right }
}

impl<const N: usize> Table<N> {
    /// A table without lines so far.
    pub fn new(columns: [Column; N]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(NOTHING);
        if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            inner.force_no_tty();
        }
        inner.set_header(
            columns.iter().map(|column| Cell::new(column.heading).add_attribute(Attribute::Bold)),
        );
        for (column, of) in inner.column_iter_mut().zip(&columns) {
            column.set_padding((0, 2));
            column.set_cell_alignment(of.alignment);
        }
        Self(inner)
    }

    /// Adds a line.
    pub fn row(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    /// Each line ends with a newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.trim_fmt())
    }
}

/// A number of bytes, in the largest binary unit of which there is one: `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // Half a tenth below the next unit would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A span of time in its two largest units: `0.3s`, `42s`, `5m03s`, `2h10m`, `3d04h`.
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// The cell of something that is not there.
pub fn or_dash<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut table = Table::new([left("NAME"), right("COUNT"), left("NOTE")]);
        table.0.force_no_tty();
        table.row(["a".into(), "12345".into(), String::new()]);
        table.row(["longer".into(), "7".into(), "x".repeat(300)]);
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "NAME    COUNT  NOTE");
        assert_eq!(lines[1], "a       12345");
        assert_eq!(lines[2], format!("longer      7  {}", "x".repeat(300)), "not wrapped");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn quantities() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(duration(0.04), "0.0s");
        assert_eq!(duration(9.96), "10s");
        assert_eq!(duration(59.9), "1m00s");
        assert_eq!(duration(303.0), "5m03s");
        assert_eq!(duration(7_800.0), "2h10m");
        assert_eq!(duration(273_600.0), "3d04h");
    }
}
