//! What was measured, as lines of JSON and as tables.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use benches::{Pass, geometric_mean};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::machine::Machine;

/// A file that lines are added to, or nothing.
pub struct Record(Option<File>);

impl Record {
    /// Opens the file at `path`, if there is one to write.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path| File::options().append(true).create(true).open(path);
        Ok(Self(path.map(open).transpose()?))
    }

    /// Adds one line.
    pub fn add(&mut self, line: Line) -> io::Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        writeln!(file, "{}", serde_json::to_string(&line)?)
    }
}

/// One line of a record.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line<'a> {
    /// Where it was measured; comes first.
    Machine(&'a Machine),
    /// What was measured.
    Measured(&'a Measured),
    /// What was not, because it would have taken too long.
    Skipped {
        contender: &'a str,
        layer: &'a str,
        batch: usize,
        pass: String,
        threads: usize,
        /// How long a call would have taken, by the contender's rate on the layer before.
        predicted_ms: f64,
    },
}

/// One contender on one pass of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    pub contender: String,
    pub layer: String,
    pub batch: usize,
    pub pass: Pass,
    pub threads: usize,
    /// Calls that the medians are of.
    pub calls: usize,
    /// A call by the wall, median and fastest.
    pub ms: f64,
    pub fastest_ms: f64,
    /// A call on the processor, over all threads, mean: the system counts that of a thread at work in ticks.
    pub cpu_ms: f64,
    pub gflops: f64,
    /// FMA peak of all threads, measured between the calls; median.
    pub fma_peak_gflops: f64,
    /// Share of it that `ms` comes to.
    pub fma_percent: f64,
    /// Bandwidth of a large copy, measured between the calls, in GB/s read and written; median.
    pub copy_gbps: f64,
    /// Share of it that moving each operand and the result once in `ms` comes to.
    pub copy_percent: f64,
    /// Peak memory of the first call beside operands and result, in bytes.
    pub workspace_bytes: isize,
    /// Largest difference from the first contender's result, in units of its largest value.
    pub difference: f64,
    /// Time that our threads waited for a processor, summed, in shares of the time measured: 0 is a
    /// machine of our own.
    pub waiting: f64,
}

/// A table of one pass in Markdown: a line for each layer; the first contender in full, the others
/// as their time and how many times the first one's that is.
pub fn table(pass: Pass, contenders: &[String], measured: &[Measured]) -> String {
    let (first, others) = contenders.split_first().expect("somebody was measured");
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    let heads = [&format!("{first} ms"), "GFLOP/s", "FMA %", "copy %", "beside KiB"];
    let heads = heads.into_iter().map(String::from);
    let heads = [format!("{pass}")].into_iter().chain(heads);
    table.set_header(heads.chain(others.iter().map(|name| format!("{name} ms (times)"))));
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));

    let rows: Vec<&Measured> =
        measured.iter().filter(|m| m.pass == pass && m.contender == *first).collect();
    let other = |row: &Measured, name: &String| -> Option<f64> {
        let same = |m: &&Measured| {
            m.contender == *name && m.pass == pass && m.layer == row.layer && m.batch == row.batch
        };
        measured.iter().find(same).map(|m| m.ms)
    };
    for row in &rows {
        let mut cells = vec![
            format!("{} b{}", row.layer, row.batch),
            milliseconds(row.ms),
            format!("{:.0}", row.gflops),
            format!("{:.0}", row.fma_percent),
            format!("{:.0}", row.copy_percent),
            format!("{:.0}", row.workspace_bytes as f64 / 1024.0),
        ];
        cells.extend(others.iter().map(|name| match other(row, name) {
            Some(ms) => format!("{} ({:.2})", milliseconds(ms), ms / row.ms),
            None => "-".to_string(),
        }));
        table.add_row(cells);
    }
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        geometric_mean(values).map_or("-".to_string(), |mean| format!("{mean:.2}"))
    };
    let mut cells = vec![
        "geometric mean".to_string(),
        String::new(),
        String::new(),
        mean(&mut rows.iter().map(|row| row.fma_percent)),
        String::new(),
        String::new(),
    ];
    cells.extend(others.iter().map(|name| {
        mean(&mut rows.iter().filter_map(|row| other(row, name).map(|ms| ms / row.ms)))
    }));
    table.add_row(cells);
    table.to_string()
}

/// Three digits that count.
fn milliseconds(ms: f64) -> String {
    match ms {
        ..1.0 => format!("{ms:.3}"),
        ..10.0 => format!("{ms:.2}"),
        ..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}
