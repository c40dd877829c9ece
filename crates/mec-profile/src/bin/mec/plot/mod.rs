//! The pictures: what a chart shows. How it is drawn is in `draw.rs`.

mod draw;

use std::path::Path;

use mec_core::WORKSPACE_PER_THREAD;
use mec_profile::paper::{LayerMemory, Measurement};
use mec_profile::report::{Fit, Layers, Profile};
use mec_profile::{Backend, Pass, StepMemory};

use crate::Failure;
use crate::units::{Units, readable};

/// Bars in panels.
pub struct Chart {
    title: String,
    subtitle: String,
    /// Name and colour of the parts of a stacked bar, or of the bars of a group.
    series: Vec<(String, Colour)>,
    /// What the mark over a bar stands for.
    mark: Option<String>,
    /// What the line across a panel stands for.
    line: Option<String>,
    stacked: bool,
    panels: Vec<Panel>,
}

/// Bars over one axis.
struct Panel {
    title: String,
    x_label: String,
    y_label: String,
    /// Whether the axis has a power of ten for each step.
    logarithmic: bool,
    /// Where a line goes across.
    line: Option<f64>,
    bars: Vec<Bars>,
}

/// The bars of one place on the axis: values of the series, one over or beside the other.
struct Bars {
    label: String,
    values: Vec<f64>,
    /// What is written over the bars, one text for a stack, one for each bar of a group.
    notes: Vec<String>,
    mark: Option<f64>,
}

/// Red, green and blue.
type Colour = (u8, u8, u8);

/// Okabe and Ito's palette, which colour-blind people can tell apart.
const BLUE: Colour = (0, 114, 178);
const SKY: Colour = (86, 180, 233);
const PINK: Colour = (204, 121, 167);
const GREY: Colour = (153, 153, 153);
const GREEN: Colour = (0, 158, 115);
const YELLOW: Colour = (240, 228, 66);
const ORANGE: Colour = (230, 159, 0);

/// In the order of [`StepMemory::stack`].
const CATEGORIES: [Colour; 7] = [BLUE, SKY, PINK, GREY, GREEN, YELLOW, ORANGE];

/// Memory against batch size, stacked by category, a panel for each convolution.
pub fn profile(profile: &Profile, units: Units) -> Chart {
    let subject = &profile.subject;
    let names = StepMemory::default().stack().map(|(name, _)| name);
    // A category that is never there is no help.
    let shown: Vec<usize> = (0..names.len())
        .filter(|&index| profile.rows.iter().any(|row| row.predicted.stack()[index].1 > 0))
        .collect();
    let mut panels: Vec<Panel> = vec![];
    for row in &profile.rows {
        let title = row.convolution.to_string();
        if panels.last().is_none_or(|panel| panel.title != title) {
            panels.push(Panel {
                title,
                x_label: "batch size".into(),
                y_label: units.name().into(),
                logarithmic: false,
                line: None,
                bars: vec![],
            });
        }
        let stack = row.predicted.stack();
        let bars = Bars {
            label: row.batch.to_string(),
            values: shown.iter().map(|&i| stack[i].1 as f64 / units.bytes()).collect(),
            notes: vec![number(row.predicted.peak as f64 / units.bytes())],
            mark: row.measured.map(|measured| measured.peak as f64 / units.bytes()),
        };
        panels.last_mut().expect("one was made").bars.push(bars);
    }
    let step = match subject.pass {
        Pass::Training => format!("a training step with {}", subject.optimizer),
        Pass::Forward => "a forward pass".to_owned(),
    };
    let [channels, height, width] = subject.image;
    let measured = profile.rows.iter().any(|row| row.measured.is_some());
    Chart {
        title: format!("Memory of {step}: {}", subject.model),
        subtitle: format!(
            "Predicted, by what it is for, at the peak. Images of {channels}x{height}x{width} on {}.",
            subject.backend
        ),
        series: shown.iter().map(|&i| (names[i].to_owned(), CATEGORIES[i])).collect(),
        mark: measured.then(|| match subject.backend {
            Backend::Wgpu => "measured between the passes".to_owned(),
            _ => "measured peak".to_owned(),
        }),
        line: None,
        stacked: true,
        panels,
    }
}

/// The largest batch of each convolution.
pub fn fit(fit: &Fit) -> Chart {
    let bars = |row: &mec_profile::report::FitRow| Bars {
        label: row.convolution.to_string(),
        values: vec![row.predicted_batch as f64],
        notes: vec![row.batch().to_string()],
        mark: row.measured_batch.map(|batch| batch as f64),
    };
    Chart {
        title: format!("Largest batch in {}: {}", readable(fit.memory), fit.subject.model),
        subtitle: format!("Of a step on {}; the number is the result.", fit.subject.backend),
        series: vec![("predicted".to_owned(), GREEN)],
        mark: fit.rows.iter().any(|row| row.measured_batch.is_some()).then(|| "measured".into()),
        line: None,
        stacked: true,
        panels: vec![Panel {
            title: String::new(),
            x_label: "convolution".into(),
            y_label: "images".into(),
            logarithmic: false,
            line: None,
            bars: fit.rows.iter().map(bars).collect(),
        }],
    }
}

/// im2col, L and the strips, a group of bars for each layer; with their times below, if measured.
pub fn layers(layers: &Layers, units: Units, formulas: bool) -> Chart {
    let mut series = vec![("im2col".to_owned(), ORANGE), ("L, the paper's".to_owned(), SKY)];
    if !formulas {
        series.push(("strips, this project's".to_owned(), BLUE));
    }
    let label = |row: &LayerMemory| match row.layer.split_once("/s") {
        Some((_, stride)) => format!("{}/{stride}", row.kernel[0]),
        None => row.layer.clone(),
    };
    let sweep = layers.rows.first().is_some_and(|row| row.layer.contains("/s"));
    let x_label = if sweep { "kernel/stride" } else { "layer" };
    let group = |row: &LayerMemory, values: Vec<f64>| Bars {
        label: label(row),
        notes: values.iter().map(|&value| number(value)).collect(),
        values,
        mark: None,
    };
    let memory = |row: &LayerMemory| {
        let all = [row.im2col, row.lowered, row.strip.forward];
        group(row, all.iter().take(series.len()).map(|&b| b as f64 / units.bytes()).collect())
    };
    let mut panels = vec![Panel {
        title: if formulas { String::new() } else { "memory, by formula and plan".into() },
        x_label: x_label.into(),
        y_label: units.name().into(),
        logarithmic: true,
        line: Some(WORKSPACE_PER_THREAD as f64 / units.bytes()),
        bars: layers.rows.iter().map(memory).collect(),
    }];
    let time = |row: &LayerMemory| {
        let measured = row.measured?;
        let ms = |one: Measurement| 1e3 * one.seconds;
        Some(group(row, vec![ms(measured.im2col), ms(measured.paper), ms(measured.strip)]))
    };
    let times: Vec<_> = layers.rows.iter().filter_map(time).collect();
    if !times.is_empty() {
        panels.push(Panel {
            title: "time of a forward pass, measured (im2col and L on one thread)".into(),
            x_label: x_label.into(),
            y_label: "ms".into(),
            logarithmic: true,
            line: None,
            bars: times,
        });
    }
    let batch = layers.rows.first().map_or(1, |row| row.batch);
    Chart {
        title: format!("What lowering takes, at batch {batch}"),
        subtitle: if sweep {
            "The less the windows overlap, the less L saves over im2col. Logarithmic axes.".into()
        } else {
            "The matrix that each way to lower a convolution copies the input into. Logarithmic axes."
                .into()
        },
        series,
        mark: None,
        line: Some("most that the strips take, for each thread".into()),
        stacked: false,
        panels,
    }
}

/// A number as one writes it over a bar: three digits or all before the point.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

impl Chart {
    /// The content of the file at `path`: its extension says which kind. A page has `table` under
    /// the picture.
    pub fn to_file(&self, path: &Path, table: &str) -> Result<Vec<u8>, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("png") => draw::png(self),
            Some("html") => Ok(self.page(&draw::svg(self)?, table).into_bytes()),
            _ => Ok(draw::svg(self)?.into_bytes()),
        }
    }

    fn page(&self, svg: &str, table: &str) -> String {
        let escaped =
            |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{}</title>\n\
             <style>body {{ font-family: sans-serif; margin: 2em; }} svg {{ max-width: 100%; height: auto; }} \
             pre {{ overflow-x: auto; line-height: 1.2; }}</style>\n</head>\n<body>\n{svg}\n<pre>\n{}</pre>\n\
             </body>\n</html>\n",
            escaped(&self.title),
            escaped(table)
        )
    }
}
