//! What the program prints before and after training.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::args::{Args, ConvKind};
use crate::comparison::{Comparison, EARLY, EARLY_TOLERANCE, Memory, Run, STEPS, TOLERANCE};
use crate::data::Data;
use crate::training::Trained;

/// A sentence about the run to come.
pub fn heading(args: &Args, data: &Data) -> String {
    let [channels, height, width] = data.shape;
    format!(
        "Training with {} on {}: {} images of {channels}x{height}x{width}, {} held out, {} in a step, \
         {} epochs, seed {}.",
        name(args.conv),
        value_name(args.backend),
        data.train.len(),
        data.test.len(),
        args.batch_size,
        args.epochs,
        args.seed
    )
}

/// The table at the end.
pub struct Report<'a> {
    pub args: &'a Args,
    pub data: &'a Data,
    pub trained: &'a Trained,
    pub comparison: &'a Comparison,
}

impl Report<'_> {
    /// The mean time of an epoch: measured for the convolution trained with, from the steps otherwise.
    fn epoch(&self, kind: ConvKind, run: &Run) -> (&'static str, Duration) {
        let epochs = &self.trained.epochs;
        if kind == self.args.conv && !epochs.is_empty() {
            ("", epochs.iter().sum::<Duration>() / epochs.len() as u32)
        } else {
            let steps = self.data.train.len() as f64 / self.step_images();
            ("about ", run.step.mul_f64(steps))
        }
    }

    /// Images in a step of the comparison.
    fn step_images(&self) -> f64 {
        self.args.batch_size.get().min(self.data.train.len()) as f64
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Comparison { mec, burn } = self.comparison;
        let both = [(ConvKind::Mec, mec), (ConvKind::Burn, burn)];
        let row = |label: &str, cell: &dyn Fn(ConvKind, &Run) -> String| {
            [label.to_owned(), cell(both[0].0, both[0].1), cell(both[1].0, both[1].1)]
        };
        let ratio = |value: f64| format!("{value:.2} x");

        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(row("", &|kind, _| {
            let trained = if kind == self.args.conv { " (trained)" } else { "" };
            format!("{}{trained}", name(kind))
        }));
        table.add_row(row("held-out accuracy, same weights", &|_, run| {
            format!("{:.2} %", 100.0 * run.accuracy)
        }));
        table.add_row(row("time of an epoch", &|kind, run| {
            let (about, time) = self.epoch(kind, run);
            format!("{about}{:.1} s", time.as_secs_f64())
        }));
        table.add_row(row("images/s", &|kind, run| {
            let (about, time) = self.epoch(kind, run);
            format!("{about}{:.0}", self.data.train.len() as f64 / time.as_secs_f64())
        }));
        table.add_row(row("time of a training step", &|_, run| {
            format!("{:.1} ms", 1e3 * run.step.as_secs_f64())
        }));
        let memory = match mec.memory {
            Memory::StepPeak(_) => "peak memory of a training step",
            Memory::DeviceReserved(_) => "device memory reserved",
        };
        table.add_row(row(memory, &|_, run| {
            format!("{:.2} MiB", run.memory.bytes() as f64 / f64::from(1 << 20))
        }));
        table.add_row(row("loss of the first step", &|_, run| format!("{:.6}", run.losses[0])));
        table.add_row(row(&format!("loss of step {STEPS}"), &|_, run| {
            format!("{:.6}", run.losses[STEPS - 1])
        }));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;

        writeln!(
            f,
            "Steps: {STEPS} with each convolution from seed {}, {} images each. \"About\" is from these.\n\
             Memory: {}.\n\
             Burn's takes {} our time and {} our memory for a step.",
            self.args.seed,
            self.step_images(),
            match mec.memory {
                Memory::StepPeak(_) => "beyond the batch, the weights and the optimiser's state",
                Memory::DeviceReserved(_) =>
                    "all that the device's allocator keeps after the steps",
            },
            ratio(burn.step.as_secs_f64() / mec.step.as_secs_f64()),
            ratio(burn.memory.bytes() as f64 / mec.memory.bytes() as f64),
        )?;
        let verdict = if self.comparison.losses_agree() { "agree" } else { "DISAGREE" };
        writeln!(
            f,
            "The loss curves {verdict}: they differ by at most {:.1e} of the loss in the first {EARLY} steps \
             (tolerance {EARLY_TOLERANCE:.0e}),\nby {:.1e} in all {STEPS}; their means by {:.1e} (tolerance {TOLERANCE:.0e}).",
            self.comparison.difference(EARLY),
            self.comparison.difference(STEPS),
            self.comparison.mean_difference(),
        )
    }
}

fn name(kind: ConvKind) -> &'static str {
    match kind {
        ConvKind::Mec => "MEC",
        ConvKind::Burn => "Burn's Conv2d",
    }
}

/// A flag's value as the user writes it.
fn value_name(value: impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::Model;

    #[test]
    fn the_table_marks_what_was_trained_and_what_is_estimated() {
        let args = Args::from_line("--conv burn --train-size 128 --test-size 10").unwrap();
        let data = crate::data::load(&args).unwrap();
        let trained = Trained {
            model: Model::new(ConvKind::Burn, data.shape, &Device::flex()),
            epochs: vec![Duration::from_secs(3), Duration::from_secs(5)],
        };
        let run = |step, peak_memory| Run {
            losses: vec![2.0; STEPS],
            step: Duration::from_millis(step),
            memory: Memory::StepPeak(peak_memory),
            accuracy: 0.975,
        };
        let comparison = Comparison { mec: run(500, 3 << 19), burn: run(1000, 3 << 20) };
        let report =
            Report { args: &args, data: &data, trained: &trained, comparison: &comparison };
        let text = report.to_string();
        for part in [
            "Burn's Conv2d (trained)",
            "97.50 %",
            " 4.0 s",      // the mean of the measured epochs
            "about 1.0 s", // two steps of 64 images
            " 32 ",
            "about 128",
            "1.50 MiB",
            "Burn's takes 2.00 x our time and 2.00 x our memory",
            "agree",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }
}
