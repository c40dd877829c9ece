//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use mec_profile::predict::Setup;
use mec_profile::{Backend, Convolution, Optimizer, Pass};

use crate::units::{Units, parse_bytes};

/// How much memory a convolution takes: in a training step for each batch size, at most for a given
/// memory, and layer by layer as in the MEC paper.
///
/// Memory is predicted by formula and measured: by a counting allocator on the CPU, by the device's
/// own report on a graphics card. The two are never mixed.
#[derive(Parser, Debug)]
#[command(name = "mec", version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Where the memory of a step goes, for each batch size and each convolution
    Profile(ProfileArgs),
    /// The largest batch whose step fits into a given memory, for each convolution
    Fit(FitArgs),
    /// What im2col, the paper's lowered matrix and the strips take, layer by layer
    Layers(LayersArgs),
    /// The networks that are built in
    Models,
}

#[derive(ClapArgs, Debug)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,

    /// Batch sizes, separated by commas; `4..64` stands for 4,8,16,32,64
    #[arg(long, value_name = "SIZES", default_value = "1..64", value_parser = batches)]
    pub batch: Batches,

    /// Predict only: nothing is run
    #[arg(long)]
    pub predict: bool,

    /// Steps that are timed; the memory is that of the one that took most
    #[arg(long, value_name = "STEPS", default_value = "3")]
    pub repeats: NonZeroUsize,

    /// Run even what should not fit into the memory that is free
    #[arg(long)]
    pub force: bool,

    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(ClapArgs, Debug)]
pub struct FitArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,

    /// What a step may take in all, for example 2GiB or 512MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: u64,

    /// The largest batch to think of
    #[arg(long, value_name = "IMAGES", default_value = "65536")]
    pub max_batch: NonZeroUsize,

    /// Predict only: nothing is run
    #[arg(long)]
    pub predict: bool,

    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(ClapArgs, Debug)]
pub struct LayersArgs {
    /// The twelve layers of the paper's Table 2, with ResNet-101's sums, or the whole catalogue
    #[arg(long, value_enum, default_value_t)]
    pub list: List,

    /// The layers of a TOML file in the catalogue's format instead
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub layers: Option<PathBuf>,

    /// One layer of the catalogue at every stride below its kernel's size instead: for cv1 the
    /// paper's Figure 4
    #[arg(long, value_name = "LAYER", conflicts_with_all = ["list", "layers"])]
    pub sweep: Option<String>,

    /// Images
    #[arg(long, value_name = "IMAGES", default_value = "1")]
    pub batch: NonZeroUsize,

    /// Predict only: nothing is run
    #[arg(long)]
    pub predict: bool,

    /// The paper's quantities alone, which are the same on every machine
    #[arg(long, conflicts_with = "predict")]
    pub formulas: bool,

    /// Threads of the strips [default: one for each processor]
    #[arg(long, value_name = "THREADS")]
    pub threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is run.
#[derive(ClapArgs, Debug)]
pub struct SubjectArgs {
    /// A network that is built in; `mec models` lists them
    #[arg(long, value_name = "NAME", default_value = "cnn", conflicts_with = "layers")]
    pub model: String,

    /// The network of a TOML file instead
    #[arg(long, value_name = "FILE")]
    pub layers: Option<PathBuf>,

    /// Height and width of an image [default: the network's own]
    #[arg(long, value_name = "PIXELS", conflicts_with = "layers")]
    pub image: Option<NonZeroUsize>,

    /// The convolutions to compare, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "mec,burn")]
    pub conv: Vec<ConvKind>,

    /// The Burn backend to run on
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendKind,

    /// A training step, or inference alone
    #[arg(long, value_enum, default_value_t)]
    pub pass: PassKind,

    /// What updates the parameters in training
    #[arg(long, value_enum, default_value_t)]
    pub optimizer: OptimizerKind,

    /// Threads of the CPU's kernels [default: one for each processor]
    #[arg(long, value_name = "THREADS")]
    pub threads: Option<NonZeroUsize>,
}

impl SubjectArgs {
    /// How a step with this convolution is run.
    pub fn setup(&self, convolution: Convolution) -> Setup {
        Setup {
            convolution,
            backend: self.backend.into(),
            pass: self.pass.into(),
            optimizer: self.optimizer.into(),
        }
    }
}

/// How and where the result is written.
#[derive(ClapArgs, Debug)]
pub struct OutputArgs {
    /// The unit of memory in tables and plots
    #[arg(long, value_enum, default_value_t)]
    pub units: Units,

    /// JSON in place of the table, with raw bytes
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,

    /// CSV in place of the table, with raw bytes
    #[arg(long)]
    pub csv: bool,

    /// A file to write to in place of standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// A picture to draw too: .svg, .png, or .html with the table under the picture
    #[arg(long, value_name = "FILE", value_parser = picture)]
    pub plot: Option<PathBuf>,
}

/// Which layers.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum List {
    /// The paper's Table 2, cv1 to cv12
    #[default]
    Paper,
    /// Every layer that the tests and benches of this project name
    Catalogue,
}

/// Which convolution.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvKind {
    /// Memory-efficient convolution, `burn_mec::nn::conv::Conv2d`
    Mec,
    /// Burn's own, `burn::nn::conv::Conv2d`
    Burn,
    /// A matrix of every patch of an image, then one product; gradients as mec (CPU)
    Im2col,
    /// The lowered matrix of the MEC paper; gradients as mec (CPU)
    Paper,
}

/// Which of Burn's backends computes.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendKind {
    /// burn-flex, on the CPU
    #[default]
    Flex,
    /// burn-ndarray, on the CPU
    Ndarray,
    /// burn-wgpu, on a graphics card
    Wgpu,
}

/// What is done with a batch.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PassKind {
    /// Loss, gradients and the optimizer's update
    #[default]
    Training,
    /// The scores alone
    Forward,
}

/// What updates the parameters.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OptimizerKind {
    /// Adam, with two moments for each parameter
    #[default]
    Adam,
    /// Gradient descent, which keeps nothing
    Sgd,
}

impl From<ConvKind> for Convolution {
    fn from(kind: ConvKind) -> Self {
        match kind {
            ConvKind::Mec => Convolution::Mec,
            ConvKind::Burn => Convolution::Burn,
            ConvKind::Im2col => Convolution::Im2col,
            ConvKind::Paper => Convolution::Paper,
        }
    }
}

impl From<BackendKind> for Backend {
    fn from(kind: BackendKind) -> Self {
        match kind {
            BackendKind::Flex => Backend::Flex,
            BackendKind::Ndarray => Backend::Ndarray,
            BackendKind::Wgpu => Backend::Wgpu,
        }
    }
}

impl From<PassKind> for Pass {
    fn from(kind: PassKind) -> Self {
        match kind {
            PassKind::Training => Pass::Training,
            PassKind::Forward => Pass::Forward,
        }
    }
}

impl From<OptimizerKind> for Optimizer {
    fn from(kind: OptimizerKind) -> Self {
        match kind {
            OptimizerKind::Adam => Optimizer::Adam,
            OptimizerKind::Sgd => Optimizer::Sgd,
        }
    }
}

/// Batch sizes in rising order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches(pub Vec<usize>);

fn batches(text: &str) -> Result<Batches, String> {
    let number = |text: &str| match text.trim().parse() {
        Ok(0) => Err("a batch has at least 1 image".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("{text:?} is not a number of images")),
    };
    let mut sizes: Vec<usize> = vec![];
    for item in text.split(',') {
        match item.split_once("..") {
            None => sizes.push(number(item)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(format!("{item} has no sizes in it"));
                }
                let doubled = |size: &usize| size.checked_mul(2);
                let sizes_of_item = std::iter::successors(Some(first), doubled);
                sizes.extend(sizes_of_item.take_while(|&size| size <= last));
            }
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    Ok(Batches(sizes))
}

fn picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg" | "png" | "html") => Ok(path),
        _ => Err("must end in .svg, .png or .html".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn batch_sizes_are_lists_and_ranges_that_double() {
        let sizes = |text| batches(text).map(|Batches(sizes)| sizes);
        assert_eq!(sizes("1,2,4..64").unwrap(), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(sizes("8,3,3").unwrap(), [3, 8]);
        assert_eq!(sizes("5..19").unwrap(), [5, 10]);
        for bad in ["", "0", "1,x", "8..4", "1..", "-1"] {
            assert!(sizes(bad).is_err(), "{bad:?}");
        }
    }
}
