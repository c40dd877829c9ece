//! Draws a record beside the machine's roofline, as SVG on standard output.
//!
//! ```sh
//! cargo run --release -p benches --bin plot -- RECORD.jsonl THREADS GFLOP/s GB/s > roofline.svg
//! ```
//!
//! The record is a driver's (one JSON object a line: `peer`, `layer`, `batch`, `threads`, `pass`, `ms`,
//! `cpu_ms`), of which our own lines are drawn; the two rates are the multiply-add peak of those threads
//! and what a copy reads and writes. With one thread the time is that on the processor, with more it is
//! that by the wall.

use std::fmt::Write as _;
use std::process::ExitCode;

use benches::{Pass, select};
use serde::Deserialize;

/// A line of the record; those of other kinds lack a field.
#[derive(Deserialize)]
struct Line {
    peer: String,
    layer: String,
    batch: usize,
    threads: usize,
    pass: String,
    ms: f64,
    cpu_ms: f64,
}

/// A measured layer and pass.
struct Point {
    name: String,
    pass: Pass,
    /// Operations for each byte of operands and result.
    intensity: f64,
    /// GFLOP/s.
    rate: f64,
}

/// Decades of the axes, and pixels for each.
const INTENSITY: (f64, f64) = (0.0, 3.0);
const RATE: (f64, f64) = (0.5, 2.7);
const DECADE: f64 = 260.0;
const MARGIN: f64 = 60.0;

fn main() -> ExitCode {
    match run() {
        Ok(picture) => {
            print!("{picture}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("plot: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [record, threads, peak, copy] = arguments.as_slice() else {
        return Err("the arguments are RECORD THREADS GFLOP/s GB/s".to_string());
    };
    let number = |text: &String| text.parse::<f64>().map_err(|error| format!("{text}: {error}"));
    let (threads, peak, copy) = (number(threads)? as usize, number(peak)?, number(copy)?);
    let text = std::fs::read_to_string(record).map_err(|error| format!("{record}: {error}"))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let points = lines
        .filter(|line| line.peer == "mec" && line.threads == threads)
        .map(point)
        .collect::<Result<Vec<_>, _>>()?;
    if points.is_empty() {
        return Err(format!("{record} has no figure of ours with {threads} threads"));
    }
    Ok(picture(&points, peak, copy))
}

fn point(line: Line) -> Result<Point, String> {
    let name = format!("{}b{}", line.layer, line.batch);
    let (layer, batch) = select(std::slice::from_ref(&name))?.remove(0);
    let g = layer.geometry(batch);
    let tensors = [g.input_shape(), g.weight_shape(), g.output_shape()];
    let elements: usize = tensors.iter().map(|shape| shape.iter().product::<usize>()).sum();
    let ms = if line.threads == 1 { line.cpu_ms } else { line.ms };
    Ok(Point {
        name,
        pass: line.pass.parse()?,
        intensity: g.flops() as f64 / (4 * elements) as f64,
        rate: g.flops() as f64 / ms / 1e6,
    })
}

fn across(intensity: f64) -> f64 {
    MARGIN + (intensity.log10() - INTENSITY.0) * DECADE
}

fn down(rate: f64) -> f64 {
    MARGIN / 2.0 + (RATE.1 - rate.log10()) * DECADE
}

fn colour(pass: Pass) -> &'static str {
    match pass {
        Pass::Forward => "#1b6ca8",
        Pass::InputGradient => "#c2571a",
        Pass::WeightGradient => "#3a8f3a",
    }
}

fn picture(points: &[Point], peak: f64, copy: f64) -> String {
    let mut svg = String::new();
    let mut add = |line: String| writeln!(svg, "{line}").expect("a string takes all");
    let (right, bottom) = (across(10f64.powf(INTENSITY.1)), down(10f64.powf(RATE.0)));
    add(format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {:.0} {:.0}' font-family='sans-serif' \
         font-size='12'>\n<rect width='100%' height='100%' fill='white'/>",
        right + 20.0,
        bottom + 50.0
    ));
    for exact in [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0] {
        let (x, y) = (across(exact), down(exact));
        add(format!("<path d='M{x:.1} 30V{bottom:.1}' stroke='#eee'/>"));
        add(format!(
            "<text x='{x:.1}' y='{:.1}' text-anchor='middle'>{exact}</text>",
            bottom + 16.0
        ));
        if (30.0..bottom).contains(&y) {
            add(format!("<path d='M{MARGIN} {y:.1}H{right:.1}' stroke='#eee'/>"));
            add(format!("<text x='54' y='{:.1}' text-anchor='end'>{exact}</text>", y + 4.0));
        }
    }
    let ridge = peak / copy;
    let low = 10f64.powf(RATE.0).max(copy);
    add(format!(
        "<path d='M{:.1} {:.1}L{:.1} {:.1}H{right:.1}' fill='none' stroke='black'/>",
        across(low / copy),
        down(low),
        across(ridge),
        down(peak)
    ));
    for p in points {
        let (x, y, fill) = (across(p.intensity), down(p.rate), colour(p.pass));
        add(format!("<circle cx='{x:.1}' cy='{y:.1}' r='3.5' fill='{fill}' fill-opacity='.75'/>"));
        // Those that fall short of the roof have names.
        if p.rate < 0.5 * peak.min(copy * p.intensity) {
            add(format!(
                "<text x='{:.1}' y='{:.1}' font-size='9' fill='{fill}'>{}</text>",
                x + 5.0,
                y + 3.0,
                p.name
            ));
        }
    }
    for (at, pass) in Pass::ALL.into_iter().enumerate() {
        let y = 46.0 + 16.0 * at as f64;
        add(format!("<circle cx='76' cy='{y}' r='4' fill='{}'/>", colour(pass)));
        add(format!("<text x='86' y='{}'>{pass}</text>", y + 4.0));
    }
    add(format!(
        "<text x='{:.1}' y='{:.1}' text-anchor='middle'>operations for each byte of operands and \
         result; vertically GFLOP/s; the roof is {peak} GFLOP/s and {copy} GB/s</text>\n</svg>",
        (right + MARGIN) / 2.0,
        bottom + 36.0
    ));
    svg
}
