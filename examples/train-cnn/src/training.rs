//! The training run: burn-train's learner with metrics and checkpoints.

use std::error::Error;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::module::Module;
use burn::optim::AdamConfig;
use burn::tensor::Device;
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{Learner, SupervisedTraining};

use crate::args::Args;
use crate::data::{Batch, Data, ImageBatcher};
use crate::model::Model;
use crate::progress::{EpochClock, PlainLines};

/// A trained network, and how long that took.
pub struct Trained {
    /// For inference.
    pub model: Model,
    /// Time spent on the training images, for each epoch that was finished.
    pub epochs: Vec<Duration>,
}

/// Trains a network on `data.train` as `args` says; tests it on `data.test` after each epoch.
pub fn train(args: &Args, data: &Data) -> Result<Trained, Box<dyn Error>> {
    prepare_artifact_dir(args)?;
    let device = args.backend.device();
    device.seed(args.seed);

    let steps = args.epochs.get() * data.train.len().div_ceil(args.batch_size.get());
    let schedule = CosineAnnealingLrSchedulerConfig::new(args.learning_rate, steps).init()?;
    let clock = EpochClock::default();

    let training = SupervisedTraining::new(
        &args.artifact_dir,
        DataLoaderBuilder::new(ImageBatcher::new(data))
            .batch_size(args.batch_size.get())
            .shuffle(args.seed)
            .set_device(device.clone())
            .build(InMemDataset::new(data.train.clone())),
        test_loader(data, &device),
    )
    .metrics((LossMetric::new(), AccuracyMetric::new()))
    .with_default_checkpointers()
    .with_progress_logger(clock.clone())
    .num_epochs(args.epochs.get());
    // burn-train's own choice without a terminal is a line of debug output for every batch.
    let training = match std::io::stdout().is_terminal() {
        true => training,
        false => training.renderer(Box::new(PlainLines::new())),
    };

    let model = Model::new(args.conv, data.shape, &device.clone().autodiff());
    let result = training.launch(Learner::new(model, AdamConfig::new().init(), schedule));
    // Leaves the dashboard, if there is one.
    drop(result.renderer);
    if let Some(error) = result.error {
        return Err(format!("training stopped: {error}").into());
    }
    if let Some(stop) = result.interrupted {
        println!("Stopped early: {}.", stop.reason.as_deref().unwrap_or("no reason given"));
    }
    result.model.clone().save_file(args.artifact_dir.join("model"))?;
    Ok(Trained { model: result.model, epochs: clock.times() })
}

/// The part of `data.test` that `model` gets right.
///
/// `model` is one in validation mode, on `device`, which keeps no gradients.
pub fn accuracy(model: &Model, data: &Data, device: &Device) -> f64 {
    let right: i64 = test_loader(data, device)
        .iter()
        .map(|batch| {
            let Batch { images, labels } = batch.expect("the images are in memory");
            let answers = model.forward(images).argmax(1).flatten::<1>(0, 1);
            answers.equal(labels).int().sum().into_scalar::<i64>()
        })
        .sum();
    right as f64 / data.test.len() as f64
}

fn test_loader(data: &Data, device: &Device) -> Arc<dyn DataLoader<Batch>> {
    /// Images at once; no gradients are kept, so that more would be no faster.
    const BATCH: usize = 250;
    DataLoaderBuilder::new(ImageBatcher::new(data))
        .batch_size(BATCH)
        .set_device(device.clone())
        .build(InMemDataset::new(data.test.clone()))
}

/// Makes the directory and clears an earlier run from it, but nothing that is not ours.
fn prepare_artifact_dir(args: &Args) -> Result<(), Box<dyn Error>> {
    /// Marks a directory as ours, and says how its contents came about.
    const MARK: &str = "args.json";
    let dir = &args.artifact_dir;
    let failed = |error: std::io::Error| format!("cannot write to {}: {error}", dir.display());

    std::fs::create_dir_all(dir).map_err(failed)?;
    let is_empty = std::fs::read_dir(dir).map_err(failed)?.next().is_none();
    if !is_empty && !dir.join(MARK).exists() {
        return Err(format!(
            "{} holds something else than an earlier run's artifacts: give an empty or a new \
             directory with --artifact-dir",
            dir.display()
        )
        .into());
    }
    for old in ["train", "valid", "checkpoint", "experiment.log"].map(|name| dir.join(name)) {
        let removed = match old.is_dir() {
            true => std::fs::remove_dir_all(&old),
            false if old.exists() => std::fs::remove_file(&old),
            false => Ok(()),
        };
        removed.map_err(failed)?;
    }
    std::fs::write(dir.join(MARK), serde_json::to_string_pretty(args)?).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::TempDir;

    fn args(line: &str, dir: &TempDir) -> Args {
        Args::from_line(&format!("{line} --artifact-dir {}", dir.0.display())).unwrap()
    }

    #[test]
    fn an_earlier_run_is_cleared_and_a_directory_of_something_else_refused() {
        let dir = TempDir::new("artifacts");
        let args = args("", &dir);
        prepare_artifact_dir(&args).unwrap();
        std::fs::create_dir_all(dir.0.join("valid/epoch-9")).unwrap();
        dir.write("notes.txt", b"mine");
        prepare_artifact_dir(&args).unwrap();
        assert!(!dir.0.join("valid").exists());
        assert!(dir.0.join("notes.txt").exists());

        let dir = TempDir::new("artifacts-not-ours");
        std::fs::create_dir_all(dir.0.join("train")).unwrap();
        dir.write("train/picture.png", b"mine");
        let error = prepare_artifact_dir(&self::args("", &dir)).unwrap_err().to_string();
        assert!(error.contains("--artifact-dir"), "{error}");
        assert!(dir.0.join("train/picture.png").exists());
    }
}
