//! `mec`: how much memory a convolution, a training step or a layer takes, and where it goes.
//! `mec --help` explains every command and flag.

mod args;
mod fit;
mod layers;
mod machine;
mod output;
mod plot;
mod profile;
mod table;
mod units;

use std::process::ExitCode;

use clap::Parser;
use mec_profile::PeakAlloc;

use args::{Args, Command};

/// Counts what a step allocates; costs a few atomic additions for each allocation.
#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

/// One sentence about what went wrong.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // Bad flags end here, with clap's message and exit status 2.
    let args = Args::parse();
    let result = match &args.command {
        Command::Profile(args) => profile::run(args),
        Command::Fit(args) => fit::run(args),
        Command::Layers(args) => layers::run(args),
        Command::Models => {
            print!("{}", table::models());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
