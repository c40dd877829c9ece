//! The tables.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use mec_profile::report::{Fit, Layers, Profile, ProfileRow, Subject};
use mec_profile::{BUILT_IN, Backend, Pass, StepMemory};

use crate::units::{Units, readable};

/// An empty table. All columns but the first `text` ones are numbers.
fn table(header: Vec<String>, text: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(text) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The list of networks.
pub fn models() -> String {
    let mut list = String::new();
    for model in BUILT_IN {
        let size = model.size;
        let _ = writeln!(list, "{:<11}{} ({size}x{size} pixels)", model.name, model.about);
    }
    list
}

fn heading(subject: &Subject) -> String {
    let Subject { model, image: [channels, height, width], backend, threads, .. } = subject;
    let step = match subject.pass {
        Pass::Training => format!("A training step with {}", subject.optimizer),
        Pass::Forward => "A forward pass".to_owned(),
    };
    let on = match backend {
        Backend::Wgpu => String::new(),
        _ => format!(", {threads} threads, {}", subject.instruction_set),
    };
    format!("{step} of {model}, images of {channels}x{height}x{width}, on {backend}{on}.\n")
}

fn percent(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", 1e3 * seconds)
}

/// `mec profile`: a line of what was predicted and, if it was, one of what was measured.
pub fn profile(profile: &Profile, units: Units) -> String {
    let training = profile.subject.pass == Pass::Training;
    let mut header = vec!["convolution".to_owned(), "batch".to_owned(), units.name().to_owned()];
    let categories: &[&str] = if training {
        &["parameters", "optimizer", "gradients", "input", "saved", "outputs", "workspace", "peak"]
    } else {
        &["parameters", "input", "outputs", "workspace", "peak"]
    };
    header.extend(categories.iter().map(|&name| name.to_owned()));
    let on_device = profile.rows.iter().any(|row| row.device.is_some());
    if on_device {
        header.push("reserved".to_owned());
    }
    let measured = profile.rows.iter().any(|row| row.measured.is_some());
    if measured {
        header.extend(["error", "step", "images/s"].map(str::to_owned));
    }
    let mut table = table(header, 3);
    let cells = |memory: &StepMemory| -> Vec<String> {
        let all = [
            memory.parameters,
            memory.optimizer_state,
            memory.gradients,
            memory.input,
            memory.saved_activations,
            memory.outputs,
            memory.workspace,
            memory.peak,
        ];
        let shown = if training { &[0, 1, 2, 3, 4, 5, 6, 7][..] } else { &[0, 3, 5, 6, 7] };
        shown.iter().map(|&index| units.of(all[index])).collect()
    };
    for row in &profile.rows {
        let mut line = vec![row.convolution.to_string(), row.batch.to_string(), "predicted".into()];
        line.extend(cells(&row.predicted));
        table.add_row(line);
        let Some(memory) = &row.measured else { continue };
        let mut line = vec![String::new(), String::new(), "measured".to_owned()];
        line.extend(cells(memory));
        line.extend(row.device.map(|device| units.of(device.reserved)));
        line.extend(measured_cells(row));
        table.add_row(line);
    }
    let mut text = format!("{}{table}\n", heading(&profile.subject));
    text.push_str(if training {
        "peak = parameters + optimizer + input + outputs + the larger of saved and gradients + workspace.\n"
    } else {
        "peak = parameters + input + outputs + workspace.\n"
    });
    if measured {
        text.push_str("error: how far the predicted peak is above the measured one.\n");
    }
    if on_device {
        text.push_str(
            "Measured is the most the device had in use after a pass, so the error leaves the workspace \
             out;\nwhat was taken in between shows in reserved.\n",
        );
    }
    text
}

fn measured_cells(row: &ProfileRow) -> [String; 3] {
    [
        row.error().map(percent).unwrap_or_default(),
        row.seconds.map(milliseconds).unwrap_or_default(),
        row.images_per_second().map(|images| format!("{images:.0}")).unwrap_or_default(),
    ]
}

/// `mec fit`: the largest batch of each convolution, and how many times the smallest one it is.
pub fn fit(fit: &Fit, units: Units) -> String {
    let measured = fit.rows.iter().any(|row| row.measured_batch.is_some());
    let mut header = vec!["convolution".to_owned(), "largest batch".to_owned()];
    if measured {
        header.push(format!("measured peak, {}", units.name()));
    }
    header.push("predicted batch".to_owned());
    header.push(format!("predicted peak, {}", units.name()));
    let mut table = table(header, 1);
    for row in &fit.rows {
        let mut line = vec![row.convolution.to_string(), row.batch().to_string()];
        line.extend(row.measured_peak.map(|peak| units.of(peak)));
        line.extend([row.predicted_batch.to_string(), units.of(row.predicted_peak)]);
        table.add_row(line);
    }
    let mut text = format!("{}{table}\n", heading(&fit.subject));
    let memory = readable(fit.memory);
    if let Some((first, others)) = fit.rows.split_first() {
        for other in others {
            let (ours, theirs) = (first.batch(), other.batch());
            let _ = match theirs {
                0 => writeln!(text, "{memory} hold no step with {} at all.", other.convolution),
                _ => writeln!(
                    text,
                    "{memory} hold {:.2} x the batch with {} that they hold with {}.",
                    ours as f64 / theirs as f64,
                    first.convolution,
                    other.convolution
                ),
            };
        }
    }
    if !measured {
        text.push_str("Predicted, not measured.\n");
    }
    text
}

/// `mec layers`; with `formulas` the paper's quantities alone.
pub fn layers(layers: &Layers, units: Units, formulas: bool) -> String {
    let measured = layers.rows.iter().any(|row| row.measured.is_some());
    let sweep = layers.rows.windows(2).any(|rows| rows[0].stride != rows[1].stride)
        && layers.rows.windows(2).all(|rows| rows[0].kernel == rows[1].kernel);
    let mut header: Vec<String> = ["layer", "input", "kernel", "stride"].map(String::from).into();
    if sweep {
        header.push("k/s".to_owned());
    }
    header.extend(["im2col", "L", "saving", "im2col/L"].map(String::from));
    if !formulas {
        header.push("strips planned".to_owned());
    }
    if measured {
        header.extend(
            ["strips measured", "im2col measured", "L measured", "strips", "im2col", "L"]
                .map(String::from),
        );
    }
    let mut table = table(header, 1);
    let by = |sizes: [usize; 3]| sizes.map(|size| size.to_string()).join("x");
    for row in &layers.rows {
        let mut line =
            vec![row.layer.clone(), by(row.input), by(row.kernel), row.stride.to_string()];
        if sweep {
            line.push(format!("{:.2}", row.kernel[0] as f64 / row.stride as f64));
        }
        line.extend([units.of(row.im2col), units.of(row.lowered), units.of(row.saving)]);
        line.push(format!("{:.2}", row.ratio));
        if !formulas {
            line.push(units.of(row.strip.forward));
        }
        if let Some(measured) = &row.measured {
            let all = [measured.strip, measured.im2col, measured.paper];
            line.extend(all.map(|one| units.of(one.workspace)));
            line.extend(all.map(|one| milliseconds(one.seconds)));
        }
        table.add_row(line);
    }
    if let Some(sums) = &layers.resnet_101 {
        let empty = String::new;
        let mut line = vec!["ResNet-101".to_owned(), empty(), empty(), empty()];
        line.extend([units.of(sums.im2col), units.of(sums.lowered)]);
        line.push(units.of(sums.im2col as i64 - sums.lowered as i64));
        line.push(format!("{:.2}", sums.ratio));
        if !formulas {
            line.push(units.of(sums.strip));
        }
        if let Some(seconds) = sums.seconds {
            line.extend([empty(), empty(), empty()]);
            line.extend([seconds.strip, seconds.im2col, seconds.paper].map(milliseconds));
        }
        table.add_row(line);
    }
    let batch = layers.rows.first().map_or(1, |row| row.batch);
    let mut text = format!(
        "Memory in {} at batch {batch}, 32-bit floats; input and kernel are height x width x channels.\n\
         {table}\n",
        units.name()
    );
    text.push_str(
        "L is the paper's lowered matrix; saving is what it takes less than the im2col matrix.\n",
    );
    if layers.resnet_101.is_some() {
        text.push_str(
            "ResNet-101 is the paper's Table 3: the sum of cv4 x1, cv9 x3, cv10 x4, cv11 x23 and cv12 x3",
        );
        text.push_str(if formulas {
            ".\n"
        } else {
            "\n(memory of strips: the largest, since none outlives its layer).\n"
        });
    }
    if !formulas {
        let _ = writeln!(
            text,
            "Strips on {} threads, {}: workspace of the forward pass over all threads.",
            layers.threads, layers.instruction_set
        );
    }
    if measured {
        text.push_str(
            "Measured beside operands and result: im2col holds one image's matrix, L comes with \
             copies between\nthe paper's layout and Burn's, both run on one thread, strips on all.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use mec_profile::Convolution;
    use mec_profile::report::FitRow;

    use super::*;

    fn subject() -> Subject {
        Subject {
            model: "cnn".into(),
            image: [1, 28, 28],
            backend: Backend::Flex,
            pass: Pass::Training,
            optimizer: mec_profile::Optimizer::Adam,
            threads: 2,
            instruction_set: "portable".into(),
        }
    }

    #[test]
    fn the_ratio_is_of_the_first_convolution_to_each_other() {
        let row = |convolution, batch| FitRow {
            convolution,
            predicted_batch: 1,
            predicted_peak: 1,
            measured_batch: Some(batch),
            measured_peak: Some(1 << 30),
        };
        let rows = vec![row(Convolution::Mec, 30), row(Convolution::Burn, 20)];
        let text = fit(&Fit { subject: subject(), memory: 2 << 30, rows }, Units::MiB);
        assert!(text.contains("2.00 GiB hold 1.50 x the batch with mec"), "{text}");
        assert!(text.contains("1024.00"), "{text}");
    }

    #[test]
    fn a_profile_shows_both_sides_and_the_error() {
        let peak = |peak| StepMemory { peak, ..StepMemory::default() };
        let row = ProfileRow {
            convolution: Convolution::Mec,
            batch: 8,
            predicted: peak(103 << 20),
            measured: Some(peak(100 << 20)),
            device: None,
            seconds: Some(0.5),
        };
        let text = profile(&Profile { subject: subject(), rows: vec![row] }, Units::MiB);
        for part in ["103.00", "100.00", "+3.0 %", "500.0 ms", " 16 ", "28x28"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
