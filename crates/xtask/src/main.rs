//! The project's commands, run as `cargo xtask <command>`; what passes here passes in CI.
//!
//! Burn takes longer to compile than everything else together, so every step that needs it selects
//! the whole workspace in release mode: one set of features, compiled once, which
//! `cargo run --release -p train-cnn` uses too. Linting and documentation share a second, cheaper
//! pass over it, without code generation.

mod vulkan;

use std::env;
use std::fmt;
use std::io;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

/// Commands of the project; what passes here passes in CI.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand, Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Run all tests, those in the documentation included
    Test,
    /// Check format and lints, build the documentation, then run all tests: what CI runs
    Ci,
}

impl Task {
    fn steps(self) -> Vec<Step> {
        match self {
            Task::Test => TESTS.to_vec(),
            Task::Ci => [&CHECKS[..], &TESTS[..]].concat(),
        }
    }
}

/// One run of cargo.
#[derive(Clone, Copy)]
struct Step {
    /// What the step shows, for the summary.
    title: &'static str,
    /// Variables it sets.
    env: &'static [(&'static str, &'static str)],
    /// Arguments to cargo, separated by blanks.
    args: &'static str,
}

const CHECKS: [Step; 3] = [
    Step { title: "format", env: &[], args: "fmt --all --check" },
    Step {
        title: "lints",
        env: &[],
        args: "clippy --release --workspace --all-targets -- -D warnings",
    },
    Step {
        title: "documentation",
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        args: "doc --release --workspace --no-deps",
    },
];

const TESTS: [Step; 2] = [
    // First, because it needs no Burn: a mistake in the kernels shows within minutes of a clone.
    Step {
        title: "tests of mec-core, with debug assertions",
        env: &[],
        args: "test --no-fail-fast --profile checked -p mec-core --all-features",
    },
    Step {
        title: "tests of the workspace",
        env: &[],
        args: "test --no-fail-fast --release --workspace",
    },
];

/// The step as one would type it.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.env {
            write!(f, "{name}=\"{value}\" ")?;
        }
        write!(f, "cargo {}", self.args)
    }
}

impl Step {
    /// Runs the step in the current directory; whether it passed, or why it could not be run.
    fn run(&self) -> io::Result<bool> {
        // Set by the cargo that runs this program, so that its toolchain is used throughout.
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(self.args.split_whitespace())
            .envs(self.env.iter().copied())
            .status()?;
        Ok(status.success())
    }
}

/// Runs the steps in order up to the first that fails; whether all passed. `run_step` says of one
/// whether it passed, or why it could not be run.
fn run(steps: &[Step], run_step: impl Fn(&Step) -> io::Result<bool>) -> bool {
    let mut passed: Vec<(&Step, Duration)> = Vec::new();
    let mut failure = None;
    for (number, step) in (1..).zip(steps) {
        eprintln!("\n[{number}/{}] {}: {step}", steps.len(), step.title);
        let start = Instant::now();
        match run_step(step) {
            Ok(true) => passed.push((step, start.elapsed())),
            Ok(false) => failure = Some(format!("{} failed; again: {step}", step.title)),
            Err(error) => failure = Some(format!("{step} could not be run: {error}")),
        }
        if failure.is_some() {
            break;
        }
    }
    eprintln!();
    for (step, time) in passed {
        eprintln!("passed in {:>6.1} s: {}", time.as_secs_f64(), step.title);
    }
    if let Some(failure) = &failure {
        eprintln!("error: {failure}");
    }
    failure.is_none()
}

fn main() -> ExitCode {
    let steps = Args::parse().command.steps();
    if let Err(what_to_do) = vulkan::ensure() {
        eprintln!("error: {what_to_do}");
        return ExitCode::FAILURE;
    }
    if run(&steps, Step::run) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_are_understood() {
        Args::command().debug_assert();
        for (line, task) in [("xtask test", Task::Test), ("xtask ci", Task::Ci)] {
            assert_eq!(Args::try_parse_from(line.split(' ')).unwrap().command, task);
        }
        assert!(Args::try_parse_from(["xtask"]).is_err());
        assert!(Args::try_parse_from(["xtask", "tests"]).is_err());
    }

    #[test]
    fn ci_runs_every_test() {
        let (test, ci) = (Task::Test.steps(), Task::Ci.steps());
        let lines = |steps: &[Step]| steps.iter().map(Step::to_string).collect::<Vec<_>>();
        assert!(lines(&ci).ends_with(&lines(&test)));
    }

    /// The README's first example is the one in burn-mec's documentation, which is compiled and run.
    #[test]
    fn the_readme_shows_what_is_tested() {
        fn first_block(text: &str, fence: &str) -> String {
            let mut lines = text.lines().skip_while(|line| *line != fence).skip(1);
            lines
                .by_ref()
                .take_while(|line| *line != "```")
                .map(|line| format!("{line}\n"))
                .collect()
        }
        let readme = first_block(include_str!("../../../README.md"), "```rust");
        let documentation: String = include_str!("../../burn-mec/src/lib.rs")
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
            .collect();
        assert!(!readme.is_empty());
        assert_eq!(readme, first_block(&documentation, "```"));
    }

    #[test]
    fn the_first_failure_ends_the_run() {
        let step = |args| Step { title: "step", env: &[], args };
        let steps = [step("one"), step("two"), step("three")];
        let ran_with = |result: fn(&str) -> io::Result<bool>| {
            let ran = RefCell::new(Vec::new());
            let passed = run(&steps, |step| {
                ran.borrow_mut().push(step.args);
                result(step.args)
            });
            (passed, ran.into_inner())
        };
        assert_eq!(ran_with(|_| Ok(true)), (true, vec!["one", "two", "three"]));
        assert_eq!(ran_with(|step| Ok(step != "two")), (false, vec!["one", "two"]));
        let missing = |_: &str| Err(io::ErrorKind::NotFound.into());
        assert_eq!(ran_with(missing), (false, vec!["one"]));
    }
}
