//! The README shows what the command prints, where that is the same on every machine.
//! `cargo xtask readme` brings it up to date.

use std::path::Path;
use std::process::Command;

#[test]
fn shows_the_papers_table_and_its_picture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("layers.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_mec"))
        .args(["layers", "--formulas", "--plot"])
        .arg(&picture)
        .output()
        .unwrap();
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.contains(&format!("```text\n{table}```")), "`cargo xtask readme` is due");
    let shown = std::fs::read_to_string(root.join("docs/layers.svg")).unwrap();
    assert!(shown == std::fs::read_to_string(picture).unwrap(), "`cargo xtask readme` is due");
}
