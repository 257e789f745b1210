//! Rows of a table of nanoseconds, measured in interleaved rounds.

use anyhow::{Context as _, Result};
use aya::programs::ProgramFd;
use lb_tests::prog::Bed;

use crate::report::{Figure, Spread, Table, Target};

/// Something that a program can be run on many times; nanoseconds each.
pub(crate) trait Measure {
    /// What the driver costs itself.
    fn control(&mut self) -> Result<f64>;
    /// What Headgate's program costs with the driver.
    fn ours(&mut self, bed: &Bed) -> Result<f64>;
    /// The same for another program that does the same with the packets.
    fn other(&mut self, program: &ProgramFd) -> Result<f64>;
}

/// Which program a row is about.
pub(crate) enum Subject<'b> {
    Ours(&'b Bed),
    Other(ProgramFd),
}

/// A row to be measured.
pub(crate) struct Row<'b> {
    pub(crate) series: Series,
    pub(crate) measure: Box<dyn Measure + 'b>,
    pub(crate) subject: Subject<'b>,
}

impl Row<'_> {
    /// Measures once.
    pub(crate) fn round(&mut self) -> Result<()> {
        let mut round = || {
            let control = self.measure.control()?;
            let with = match &self.subject {
                Subject::Ours(bed) => self.measure.ours(bed)?,
                Subject::Other(program) => self.measure.other(program)?,
            };
            Ok::<_, anyhow::Error>(with - control)
        };
        let net = round().with_context(|| self.series.name.clone())?;
        self.series.net.push(net);
        Ok(())
    }
}

/// What the rounds gave for a row, and what it is compared with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// One figure for each round: nanoseconds a packet, without the driver, or what [`Quantity`] says.
    pub(crate) net: Vec<f64>,
    /// The name of another row, and what the ratio to it should be.
    pub(crate) relative_to: Option<String>,
    pub(crate) target: Option<Target>,
}

impl Series {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn relative_to(mut self, other: impl Into<String>) -> Self {
        self.relative_to = Some(other.into());
        self
    }

    pub(crate) fn at_most(mut self, ratio: f64) -> Self {
        self.target = Some(Target::AtMost(ratio));
        self
    }

    pub(crate) fn at_least(mut self, ratio: f64) -> Self {
        self.target = Some(Target::AtLeast(ratio));
        self
    }
}

/// What the figures of some series are.
pub(crate) struct Quantity {
    /// What the column of a table says.
    pub(crate) column: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) decimals: usize,
}

/// The table and the figures of some rows of nanoseconds.
pub(crate) fn report(section: &str, title: &str, all: &[Series]) -> Result<(Table, Vec<Figure>)> {
    report_of(&Quantity { column: "ns a packet", unit: "ns", decimals: 1 }, section, title, all)
}

/// The same for another quantity.
pub(crate) fn report_of(
    quantity: &Quantity,
    section: &str,
    title: &str,
    all: &[Series],
) -> Result<(Table, Vec<Figure>)> {
    let mut rows = Vec::new();
    let mut figures = Vec::new();
    for series in all {
        let spread = Spread::of(&series.net);
        let mut figure = Figure::new(format!("{section}: {}", series.name), spread.median, quantity.unit);
        let mut row = vec![series.name.clone(), spread.show(quantity.decimals)];
        if let Some(name) = &series.relative_to {
            let other = all.iter().find(|other| other.name == *name);
            let ratio = Spread::of_ratios(&series.net, &other.with_context(|| format!("no row {name}"))?.net);
            figure = figure.relative_to(format!("{section}: {name}"), ratio.median);
            row.extend([name.clone(), ratio.show(2)]);
        } else {
            row.extend(["-".to_owned(), "-".to_owned()]);
        }
        row.push(series.target.map_or_else(|| "-".to_owned(), |target| target.to_string()));
        if let Some(target) = series.target {
            figure = figure.target(target);
        }
        rows.push(row);
        figures.push(figure);
    }
    let columns = ["case", quantity.column, "relative to", "ratio", "target"].map(str::to_owned).into();
    Ok((Table { title: title.to_owned(), columns, rows }, figures))
}
