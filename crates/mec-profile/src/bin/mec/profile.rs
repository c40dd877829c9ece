//! `mec profile`.

use std::fs;

use burn::tensor::{Device, DeviceKind};
use mec_profile::model::Model;
use mec_profile::predict::{self, Setup};
use mec_profile::report::{Profile, ProfileRow, Subject};
use mec_profile::{Backend, Convolution, Measured, measure_step};

use crate::Failure;
use crate::args::{ProfileArgs, SubjectArgs};
use crate::machine;
use crate::output;
use crate::plot;
use crate::table;
use crate::units::readable;

pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    let subject = &args.subject;
    let model = model(subject)?;
    let convolutions = prepare(subject)?;
    let device = if args.predict { None } else { Some(device(subject)?) };

    let mut rows = vec![];
    for &convolution in &convolutions {
        let setup = subject.setup(convolution);
        for &batch in &args.batch.0 {
            rows.push(ProfileRow {
                convolution,
                batch,
                predicted: predict::step(&model, batch, &setup),
                measured: None,
                device: None,
                seconds: None,
            });
        }
    }
    if let Some(device) = device {
        if !args.force {
            refuse_what_cannot_fit(&model, subject, &rows)?;
        }
        let bar = machine::progress(rows.len() as u64);
        for row in &mut rows {
            bar.set_message(format!("{} at batch {}", row.convolution, row.batch));
            let setup = subject.setup(row.convolution);
            let measured = measure(&model, row.batch, &setup, &device, args.repeats.get())?;
            row.measured = Some(measured.memory);
            row.device = measured.device;
            row.seconds = Some(measured.time.as_secs_f64());
            bar.inc(1);
        }
        bar.finish_and_clear();
    }
    let profile = Profile { subject: describe(&model, subject), rows };
    let units = args.output.units;
    let table = table::profile(&profile, units);
    let chart = || plot::profile(&profile, units);
    output::write(
        &args.output,
        &profile,
        &output::csv(Some(&profile.subject), &profile.rows)?,
        &table,
        chart,
    )
}

/// Measures a step, or says why it could not be run.
pub fn measure(
    model: &Model,
    batch: usize,
    setup: &Setup,
    device: &Device,
    repeats: usize,
) -> Result<Measured, Failure> {
    let what = format!(
        "a step of {} with {} at batch {batch} on {}",
        model.name, setup.convolution, setup.backend
    );
    machine::attempt(&what, || measure_step(model, batch, setup, device, repeats))
}

/// The network to run.
pub fn model(args: &SubjectArgs) -> Result<Model, Failure> {
    let Some(path) = &args.layers else {
        return Ok(Model::built_in(&args.model, args.image.map(|size| size.get()))?);
    };
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    Ok(Model::parse(&name, &text)?)
}

/// Sets the threads up and says which convolutions are to be run.
pub fn prepare(args: &SubjectArgs) -> Result<Vec<Convolution>, Failure> {
    machine::set_threads(args.threads.map(|threads| threads.get()))?;
    let mut convolutions: Vec<Convolution> = vec![];
    for &kind in &args.conv {
        let convolution = kind.into();
        if !Backend::from(args.backend).is_cpu()
            && matches!(convolution, Convolution::Im2col | Convolution::Paper)
        {
            return Err(format!("--conv {convolution} runs on the CPU, not on wgpu").into());
        }
        if !convolutions.contains(&convolution) {
            convolutions.push(convolution);
        }
    }
    Ok(convolutions)
}

/// The backend's device, without gradients.
pub fn device(args: &SubjectArgs) -> Result<Device, Failure> {
    match args.backend.into() {
        Backend::Flex => Ok(Device::flex()),
        // Burn means to drop ndarray after 0.22; until then it is one of its two CPU backends.
        #[allow(deprecated)]
        Backend::Ndarray => Ok(Device::ndarray()),
        Backend::Wgpu => {
            let device = Device::wgpu(DeviceKind::DefaultDevice);
            // The driver is asked for at the first use, and there may be none.
            let works = machine::attempt("the graphics card", || {
                device.memory_pool_usage().is_some() && device.sync().is_ok()
            });
            match works {
                Ok(true) => Ok(device),
                _ => {
                    Err("no graphics card, nor a software one, was found for --backend wgpu".into())
                }
            }
        }
    }
}

/// What the report says about the run.
pub fn describe(model: &Model, args: &SubjectArgs) -> Subject {
    Subject {
        model: model.name.clone(),
        image: model.input,
        backend: args.backend.into(),
        pass: args.pass.into(),
        optimizer: args.optimizer.into(),
        threads: rayon::current_num_threads(),
        instruction_set: mec_core::instruction_set().to_owned(),
    }
}

fn refuse_what_cannot_fit(
    model: &Model,
    args: &SubjectArgs,
    rows: &[ProfileRow],
) -> Result<(), Failure> {
    let Some(free) = machine::free_memory().filter(|_| Backend::from(args.backend).is_cpu()) else {
        return Ok(());
    };
    match rows.iter().find(|row| row.predicted.peak > free) {
        None => Ok(()),
        Some(row) => Err(format!(
            "a step of {} with {} at batch {} should take {}, but {} of memory are free: give smaller \
             batches, --predict or --force",
            model.name,
            row.convolution,
            row.batch,
            readable(row.predicted.peak),
            readable(free)
        )
        .into()),
    }
}
