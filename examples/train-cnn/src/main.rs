//! Trains a small CNN on digits, MNIST or CIFAR-10, with memory-efficient convolutions or Burn's own,
//! then prints how the two compare. `--help` explains every flag.

mod args;
mod comparison;
mod data;
mod model;
mod progress;
mod report;
mod training;

use std::error::Error;
use std::process::ExitCode;

use mec_profile::PeakAlloc;

use args::Args;
use comparison::Comparison;
use report::Report;

/// Counts what a training step allocates; costs a few atomic additions for each allocation.
#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

fn main() -> ExitCode {
    // Bad flags end here, with clap's message and exit status 2.
    match run(&Args::parse_checked()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let data = data::load(args)?;
    println!("{}", report::heading(args, &data));

    let trained = training::train(args, &data)?;
    println!("Running a few steps with each convolution ...");
    let comparison = Comparison::run(args, &data, &trained.model);

    println!("\n{}", Report { args, data: &data, trained: &trained, comparison: &comparison });
    println!("Checkpoints, metrics and the log are in {}.", args.artifact_dir.display());
    if !comparison.losses_agree() {
        return Err("the two convolutions do not train alike, see the losses above".into());
    }
    Ok(())
}
