//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use burn::tensor::{Device, DeviceKind};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use serde::Serialize;

/// Train a small CNN whose convolutions are memory-efficient (MEC), and compare them with Burn's own.
///
/// Draws its own digits by default, so it needs no data and no network. Shows a dashboard where
/// standard output is a terminal and plain lines otherwise. Ends with a table of held-out accuracy,
/// speed and the peak memory of a training step, and checks that both convolutions train alike.
#[derive(Parser, Serialize, Debug, Clone)]
#[command(name = "train-cnn", version)]
pub struct Args {
    /// The convolution to train with: ours, or Burn's own
    ///
    /// The other one runs for a few steps at the end, for the comparison.
    #[arg(long, value_enum, default_value_t)]
    pub conv: ConvKind,

    /// The Burn backend to run on: a GPU, or all cores of the CPU
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendKind,

    /// The images to learn
    #[arg(long, value_enum, default_value_t)]
    pub dataset: DatasetKind,

    /// Directory of the dataset's original files (for mnist and cifar10)
    ///
    /// For mnist the four IDX files, as they are or gzipped; downloaded if this is not given. For
    /// cifar10 the six batches of the binary version; not downloaded.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Number of training images: how many digits to draw, or the most to take from the files
    /// [default: 10000 for digits, all otherwise]
    #[arg(long, value_name = "IMAGES")]
    pub train_size: Option<NonZeroUsize>,

    /// Number of held-out images, likewise [default: 2000 for digits, all otherwise]
    #[arg(long, value_name = "IMAGES")]
    pub test_size: Option<NonZeroUsize>,

    /// Images in a training step
    #[arg(long, value_name = "IMAGES", default_value = "64")]
    pub batch_size: NonZeroUsize,

    /// How often to go through the training images
    #[arg(long, default_value = "6")]
    pub epochs: NonZeroUsize,

    /// Learning rate of Adam at the start, above 0 and at most 1; falls to 0 along a cosine
    #[arg(long, value_name = "RATE", default_value_t = 2e-3, value_parser = learning_rate)]
    pub learning_rate: f64,

    /// Decides the drawn digits, the initial weights and the order of the images
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Directory for checkpoints, metrics and the log; those of an earlier run are replaced
    #[arg(long, value_name = "DIR", default_value = "target/train-cnn")]
    pub artifact_dir: PathBuf,
}

/// Which convolution a model is made of.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum ConvKind {
    /// Memory-efficient convolution, `burn_mec::nn::conv::Conv2d`
    #[default]
    Mec,
    /// Burn's own, `burn::nn::conv::Conv2d`
    Burn,
}

/// Which of Burn's backends computes.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// burn-flex, Burn's own CPU backend
    #[default]
    Flex,
    /// burn-ndarray, built on the ndarray crate
    Ndarray,
    /// burn-wgpu: a GPU, or software that plays one
    Wgpu,
}

/// Which images to learn.
#[derive(ValueEnum, Serialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// Digits that the program draws, 28x28 in grey
    #[default]
    Digits,
    /// Handwritten digits, 28x28 in grey, 60000 and 10000 images
    Mnist,
    /// Photographs of ten kinds of things, 32x32 in colour, 50000 and 10000 images
    Cifar10,
}

impl Args {
    /// Parses the command line; on a mistake prints what is wrong and exits with status 2.
    pub fn parse_checked() -> Self {
        Self::parse().check().unwrap_or_else(|error| error.exit())
    }

    /// Refuses flags that are right alone and wrong together.
    fn check(self) -> Result<Self, clap::Error> {
        if self.data_dir.is_some() && self.dataset == DatasetKind::Digits {
            return Err(Self::command().error(
                ErrorKind::ArgumentConflict,
                "--data-dir needs '--dataset mnist' or '--dataset cifar10': digits are drawn",
            ));
        }
        if self.data_dir.is_none() && self.dataset == DatasetKind::Cifar10 {
            return Err(Self::command().error(
                ErrorKind::MissingRequiredArgument,
                format!(
                    "'--dataset cifar10' needs '--data-dir DIR': unpack {} and give its directory \
                     cifar-10-batches-bin",
                    crate::data::CIFAR10_SOURCE
                ),
            ));
        }
        Ok(self)
    }
}

impl BackendKind {
    /// The backend's device, without gradients.
    pub fn device(self) -> Device {
        match self {
            Self::Flex => Device::flex(),
            // Burn means to drop ndarray after 0.22; until then it is one of its two CPU backends.
            #[allow(deprecated)]
            Self::Ndarray => Device::ndarray(),
            Self::Wgpu => Device::wgpu(DeviceKind::default()),
        }
    }
}

fn learning_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    if rate > 0.0 && rate <= 1.0 {
        Ok(rate)
    } else {
        Err("must be above 0 and at most 1".to_owned())
    }
}

#[cfg(test)]
impl Args {
    /// The arguments that the command line `train-cnn <line>` gives, or clap's error.
    pub fn from_line(line: &str) -> Result<Self, clap::Error> {
        let words = line.split_whitespace();
        Self::try_parse_from(std::iter::once("train-cnn").chain(words))?.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
        let args = Args::from_line("").unwrap();
        assert_eq!(args.conv, ConvKind::Mec);
        assert_eq!(args.dataset, DatasetKind::Digits);
    }

    #[test]
    fn bad_flags_are_refused_with_status_2() {
        for (line, says) in [
            ("--conv fast", "[possible values: mec, burn]"),
            ("--backend gpu", "[possible values: flex, ndarray, wgpu]"),
            ("--dataset imagenet", "[possible values: digits, mnist, cifar10]"),
            ("--batch-size 0", "--batch-size"),
            ("--epochs many", "--epochs"),
            ("--learning-rate 0", "above 0"),
            ("--learning-rate nan", "above 0"),
            ("--learning-rate fast", "must be a number"),
            ("--seed -1", "-1"),
            ("--data-dir .", "digits are drawn"),
            ("--dataset cifar10", "cifar-10-batches-bin"),
        ] {
            let error = Args::from_line(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(says), "{line} gives: {error}");
        }
    }
}
