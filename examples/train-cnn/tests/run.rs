//! The program as its user runs it: a process of its own, so that no other test draws from the
//! backend's random numbers meanwhile.

use std::path::PathBuf;
use std::process::{Command, Output};

/// An artifact directory that is removed when dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("train-cnn-run-{name}-{}", std::process::id())))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nothing to do about a directory that does not go; the test's own result stands.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn train_cnn(line: &str, dir: &TempDir) -> Output {
    Command::new(env!("CARGO_BIN_EXE_train-cnn"))
        .args(line.split_whitespace())
        .arg("--artifact-dir")
        .arg(&dir.0)
        .output()
        .unwrap()
}

/// The number before `unit` at the end of the last piece of `text` that `label` begins.
fn last_number(text: &str, label: &str, unit: &str) -> f64 {
    let rest = text.rsplit_once(label).unwrap_or_else(|| panic!("no {label:?} in\n{text}")).1;
    rest.split_once(unit).unwrap().0.trim().parse().unwrap()
}

#[test]
fn a_run_learns_leaves_its_artifacts_and_both_convolutions_agree() {
    for backend in ["flex", "ndarray"] {
        let dir = TempDir::new(backend);
        let sizes = "--train-size 2000 --test-size 200 --batch-size 16 --epochs 2";
        let output = train_cnn(&format!("--backend {backend} {sizes}"), &dir);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{backend}: {errors}\n{text}");

        let accuracy = last_number(&text, "Accuracy: ", "%");
        assert!(accuracy > 60.0, "{backend}: guessing gets 10 %, this {accuracy} %\n{text}");
        assert!(text.contains("The loss curves agree"), "{backend}:\n{text}");
        for file in ["model.bpk", "checkpoint/model-2.bpk", "train/epoch-2/Loss.log", "args.json"] {
            assert!(dir.0.join(file).exists(), "{backend}: {file} is not there");
        }
    }
}

#[test]
fn mistakes_end_with_a_message_and_a_status() {
    let dir = TempDir::new("mistakes");
    for (line, status, says) in [
        ("--epochs 0", 2, "--epochs"),
        ("--dataset cifar10", 2, "--data-dir"),
        ("--dataset mnist --data-dir /no/such/directory", 1, "train-images-idx3-ubyte is missing"),
    ] {
        let output = train_cnn(line, &dir);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}: {errors}");
        assert!(errors.contains(says), "{line}: {errors}");
        assert!(
            !dir.0.exists(),
            "{line}: nothing is written before the flags and the data are right"
        );
    }
}
