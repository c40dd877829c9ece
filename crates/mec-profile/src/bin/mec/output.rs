//! Writing results: a table, JSON or CSV to standard output or a file, and a picture. Whatever is
//! written to a file is complete first and then takes the file's place, so that a failure leaves
//! nothing half-written.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use mec_profile::paper::LayerMemory;
use mec_profile::report::{FitRow, ProfileRow, Subject};
use serde::Serialize;
use serde_json::Value;
use tempfile::{Builder, NamedTempFile};

use crate::Failure;
use crate::args::OutputArgs;
use crate::plot::Chart;

/// Writes `report` as it is asked for: as it is for JSON, as `csv` or as `table`; and `chart`.
pub fn write(
    args: &OutputArgs,
    report: &impl Serialize,
    csv: &str,
    table: &str,
    chart: impl FnOnce() -> Chart,
) -> Result<(), Failure> {
    let text = match (args.json, args.csv) {
        (true, _) => serde_json::to_string_pretty(report)? + "\n",
        (_, true) => csv.to_owned(),
        _ => table.to_owned(),
    };
    let picture = match &args.plot {
        None => None,
        Some(path) => Some(prepare(path, &chart().to_file(path, table)?)?),
    };
    let file = match &args.output {
        None => None,
        Some(path) => Some(prepare(path, text.as_bytes())?),
    };
    for (file, path) in [(picture, &args.plot), (file, &args.output)] {
        if let (Some(file), Some(path)) = (file, path) {
            file.persist(path).map_err(|error| cannot_write(path, &error.error))?;
        }
    }
    if args.output.is_none() {
        match io::stdout().write_all(text.as_bytes()) {
            // The reader has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result?,
        }
    }
    Ok(())
}

/// A temporary file with this content, in the directory of `path`.
fn prepare(path: &Path, content: &[u8]) -> Result<NamedTempFile, Failure> {
    let write = || -> io::Result<NamedTempFile> {
        let directory = match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let mut builder = Builder::new();
        // As for any new file: what the user's mask leaves of this.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(directory)?;
        file.write_all(content)?;
        Ok(file)
    };
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        return Err(format!("{} is a directory", path.display()).into());
    }
    write().map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    format!("{} cannot be written: {error}", path.display()).into()
}

/// A row of a CSV file.
pub trait CsvRow: Serialize {
    /// Its fields, those of nested objects behind a dot.
    const COLUMNS: &[&str];
}

const SUBJECT: [&str; 7] =
    ["model", "image", "backend", "pass", "optimizer", "threads", "instruction_set"];

impl CsvRow for ProfileRow {
    const COLUMNS: &[&str] = &[
        "convolution",
        "batch",
        "predicted.parameters",
        "predicted.optimizer_state",
        "predicted.input",
        "predicted.saved_activations",
        "predicted.gradients",
        "predicted.outputs",
        "predicted.workspace",
        "predicted.peak",
        "measured.parameters",
        "measured.optimizer_state",
        "measured.input",
        "measured.saved_activations",
        "measured.gradients",
        "measured.outputs",
        "measured.workspace",
        "measured.peak",
        "device.in_use",
        "device.reserved",
        "seconds",
    ];
}

impl CsvRow for FitRow {
    const COLUMNS: &[&str] =
        &["convolution", "predicted_batch", "predicted_peak", "measured_batch", "measured_peak"];
}

impl CsvRow for LayerMemory {
    const COLUMNS: &[&str] = &[
        "layer",
        "batch",
        "input",
        "kernel",
        "stride",
        "im2col",
        "lowered",
        "saving",
        "ratio",
        "strip.forward",
        "strip.input_gradient",
        "strip.weight_gradient",
        "measured.strip.workspace",
        "measured.strip.seconds",
        "measured.im2col.workspace",
        "measured.im2col.seconds",
        "measured.paper.workspace",
        "measured.paper.seconds",
    ];
}

/// `rows` as CSV, each after the fields of `subject`.
pub fn csv<R: CsvRow>(subject: Option<&Subject>, rows: &[R]) -> Result<String, Failure> {
    let subject_columns = if subject.is_some() { &SUBJECT[..] } else { &[] };
    let subject = serde_json::to_value(subject)?;
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record(subject_columns.iter().chain(R::COLUMNS))?;
    for row in rows {
        let row = serde_json::to_value(row)?;
        let of_subject = subject_columns.iter().map(|&column| text(&subject[column]));
        let of_row = R::COLUMNS.iter().map(|column| {
            let value = column.split('.').try_fold(&row, |value, key| value.get(key));
            value.map(text).unwrap_or_default()
        });
        writer.write_record(of_subject.chain(of_row))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("x"),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use mec_profile::paper::{Measurement, Measurements, StripWorkspace};
    use mec_profile::{Backend, Convolution, DeviceMemory, Optimizer, Pass, StepMemory};

    use super::*;

    /// The names of all fields, those of nested objects behind a dot.
    fn names(prefix: &str, value: &Value) -> Vec<String> {
        let Value::Object(fields) = value else { return vec![prefix.to_owned()] };
        let nested = |(name, value): (&String, &Value)| match prefix {
            "" => names(name, value),
            prefix => names(&format!("{prefix}.{name}"), value),
        };
        fields.iter().flat_map(nested).collect()
    }

    fn has_every_field<R: CsvRow>(row: &R) {
        let mut names = names("", &serde_json::to_value(row).unwrap());
        let mut columns = R::COLUMNS.to_vec();
        names.sort();
        columns.sort();
        assert_eq!(names, columns);
    }

    fn profile_row() -> ProfileRow {
        ProfileRow {
            convolution: Convolution::Mec,
            batch: 7,
            predicted: StepMemory::default(),
            measured: Some(StepMemory::default()),
            device: Some(DeviceMemory { in_use: 0, reserved: 0 }),
            seconds: None,
        }
    }

    #[test]
    fn csv_has_every_field() {
        has_every_field(&profile_row());
        has_every_field(&FitRow {
            convolution: Convolution::Mec,
            predicted_batch: 0,
            predicted_peak: 0,
            measured_batch: None,
            measured_peak: None,
        });
        let one = Measurement { workspace: 0, seconds: 0.0 };
        has_every_field(&LayerMemory {
            layer: String::new(),
            batch: 0,
            input: [0; 3],
            kernel: [0; 3],
            stride: 0,
            im2col: 0,
            lowered: 0,
            saving: 0,
            ratio: 0.0,
            strip: StripWorkspace { forward: 0, input_gradient: 0, weight_gradient: 0 },
            measured: Some(Measurements { strip: one, im2col: one, paper: one }),
        });
    }

    #[test]
    fn what_was_not_measured_is_empty() {
        let subject = Subject {
            model: "cnn".into(),
            image: [1, 28, 28],
            backend: Backend::Flex,
            pass: Pass::Training,
            optimizer: Optimizer::Adam,
            threads: 2,
            instruction_set: "portable".into(),
        };
        let mut names = names("", &serde_json::to_value(&subject).unwrap());
        names.sort();
        let mut columns = SUBJECT;
        columns.sort_unstable();
        assert_eq!(names, columns);
        let rows = [ProfileRow { measured: None, device: None, ..profile_row() }, profile_row()];
        let csv = csv(Some(&subject), &rows).unwrap();
        let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
        let peak = lines[0].iter().position(|&name| name == "measured.peak").unwrap();
        assert_eq!((lines[1][peak], lines[2][peak]), ("", "0"));
        assert_eq!(lines[1][1], "1x28x28");
    }
}
