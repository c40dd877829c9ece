//! The project's commands, run as `cargo xtask <command>`; what passes here passes in CI.
//!
//! Burn takes longer to compile than everything else together, so every step that needs it selects
//! the whole workspace in release mode: one set of features, compiled once, which
//! `cargo run --release -p train-cnn` uses too. Linting and documentation share a second, cheaper
//! pass over it, without code generation.

mod vulkan;

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
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
    /// Print the README's tables and draw its picture anew, by the commands that it names
    Readme,
}

impl Task {
    fn steps(self) -> Vec<Step> {
        match self {
            Task::Test => TESTS.to_vec(),
            Task::Ci => [&CHECKS[..], &TESTS[..]].concat(),
            Task::Readme => vec![],
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

/// What `mec` prints in the README: each between a comment `<!-- COMMAND: begin -->` and one that
/// ends it. The first is computed, and a test of mec-profile holds the README to it; the others are
/// measured on the machine at hand.
const README: [&str; 3] = [
    "mec layers --formulas --plot docs/layers.svg",
    "mec fit --model lenet5 --memory 64MiB",
    "mec fit --model resnet18 --image 64 --memory 512MiB",
];

/// `text` with `block` between the comments of `command`; why not, where they are not there.
fn with_block(text: &str, command: &str, block: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {command}: begin -->"), format!("<!-- {command}: end -->"));
    let missing = |comment| format!("README.md has no comment {comment}");
    let (before, rest) = text.split_once(&begin).ok_or_else(|| missing(&begin))?;
    let (_, after) = rest.split_once(&end).ok_or_else(|| missing(&end))?;
    Ok(format!("{before}{begin}\n\n```text\n{block}```\n\n{end}{after}"))
}

/// Runs the README's commands at the root of the workspace, and writes the README.
fn readme() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("README.md");
    let mut text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
    for command in README {
        eprintln!("{command}");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(&root)
            .args("run --quiet --release -p mec-profile --bin".split(' '))
            .args(command.split(' ').take(1))
            .arg("--")
            .args(command.split(' ').skip(1))
            .stderr(std::process::Stdio::inherit())
            .output()
            .map_err(|error| format!("{command} could not be run: {error}"))?;
        if !output.status.success() {
            return Err(format!("{command} failed"));
        }
        let block = String::from_utf8(output.stdout).map_err(|error| error.to_string())?;
        text = with_block(&text, command, &block)?;
    }
    fs::write(&path, text).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let task = Args::parse().command;
    let prepared = if task == Task::Readme { readme() } else { vulkan::ensure() };
    let passed = match prepared {
        Ok(()) => run(&task.steps(), Step::run),
        Err(error) => {
            eprintln!("error: {error}");
            false
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_are_understood() {
        Args::command().debug_assert();
        for (line, task) in
            [("xtask test", Task::Test), ("xtask ci", Task::Ci), ("xtask readme", Task::Readme)]
        {
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

    #[test]
    fn a_block_of_the_readme_is_replaced() {
        let text = "a\n<!-- mec x: begin -->\nold\n<!-- mec x: end -->\nb";
        let new = with_block(text, "mec x", "new\n").unwrap();
        assert_eq!(new, "a\n<!-- mec x: begin -->\n\n```text\nnew\n```\n\n<!-- mec x: end -->\nb");
        assert_eq!(with_block(&new, "mec x", "new\n").unwrap(), new);
        assert!(with_block(text, "mec y", "new\n").is_err());
    }

    #[test]
    fn the_readme_has_a_place_for_every_command() {
        for command in README {
            with_block(include_str!("../../../README.md"), command, "").unwrap();
        }
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
