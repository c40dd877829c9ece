//! The command as its user runs it.

use std::process::{Command, Output};

fn mec(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mec")).args(line.split_whitespace()).output().unwrap()
}

fn stdout(line: &str) -> String {
    let output = mec(line);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}: {errors}");
    assert_eq!(errors, "", "{line}: no progress bar where nobody sees it");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_papers_table_comes_with_its_sums() {
    let text = stdout("layers --formulas");
    for part in ["cv1 ", "cv12", "203.66", "64.57", "3.15", " 2.67 ", " 2.14 "] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let text = stdout("layers --sweep cv1 --predict --units KiB");
    assert!(text.contains("cv1/s10") && text.contains("11.00") && text.contains("KiB"), "{text}");
}

#[test]
fn a_profile_is_measured_on_every_cpu_backend() {
    for backend in ["flex", "ndarray"] {
        let line =
            format!("profile --backend {backend} --conv mec,burn,im2col,paper --batch 2 --json");
        let json: serde_json::Value = serde_json::from_str(&stdout(&line)).unwrap();
        let rows = json["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 4);
        for row in rows {
            let parts = |side: &str| {
                let memory = &row[side];
                let part = |name: &str| memory[name].as_u64().unwrap();
                let saved = part("saved_activations").max(part("gradients"));
                let others = ["parameters", "optimizer_state", "input", "outputs", "workspace"];
                (others.into_iter().map(part).sum::<u64>() + saved, part("peak"))
            };
            for side in ["predicted", "measured"] {
                let (sum, peak) = parts(side);
                assert_eq!(sum, peak, "{backend}, {side}: {row}");
            }
            assert!(row["seconds"].as_f64().unwrap() > 0.0);
        }
    }
    let csv = stdout("profile --pass forward --predict --batch 1,4 --csv");
    assert_eq!(csv.lines().count(), 1 + 2 * 2);
}

#[test]
fn the_largest_batch_is_confirmed() {
    let json = stdout("fit --model lenet5 --memory 4MiB --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for row in json["rows"].as_array().unwrap() {
        let batch = row["measured_batch"].as_u64().unwrap();
        assert!(batch > 1, "{row}");
        assert!(row["measured_peak"].as_u64().unwrap() <= 4 << 20, "{row}");
    }
}

#[test]
fn files_are_written_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    for (name, begins) in [("a.svg", &b"<svg"[..]), ("a.png", b"\x89PNG"), ("a.html", b"<!DOCTYPE")]
    {
        stdout(&format!("layers --formulas --plot {}", path(name)));
        assert!(std::fs::read(path(name)).unwrap().starts_with(begins), "{name}");
    }
    assert_eq!(stdout(&format!("layers --formulas -o {}", path("a.txt"))), "");
    assert_eq!(std::fs::read_to_string(path("a.txt")).unwrap(), stdout("layers --formulas"));
    // A mistake leaves what was there, and nothing else.
    let before = std::fs::read_dir(directory.path()).unwrap().count();
    let line = format!("layers --formulas -o {} --plot {}", path("no/b.txt"), path("b.svg"));
    assert_eq!(mec(&line).status.code(), Some(2));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), before);
}

#[test]
fn mistakes_are_one_sentence_and_status_2() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let typo = file(
        "typo.toml",
        "input = [3, 8, 8]\nlayers = [\n  { conv = { out = 4, kernal = 3 } },\n]",
    );
    let apart =
        file("apart.toml", "input = [3, 8, 8]\nlayers = [{ conv = { out = 4, kernel = 9 } }]");
    let layer = file("layer.toml", "[[layer]]\nname = 'a'\ninput = [8, 8, 3]\nkernel = [3, 3]\n");
    for (line, says) in [
        ("profile --model resnet".to_owned(), "resnet101"),
        (format!("profile --layers {typo}"), "line 3: unknown field `kernal`"),
        (format!("profile --layers {apart}"), "layer 1"),
        ("profile --layers nowhere.toml".to_owned(), "nowhere.toml"),
        (format!("layers --layers {layer}"), "line 4"),
        ("layers --sweep cv99".to_owned(), "cv12"),
        ("profile --batch 0".to_owned(), "at least 1"),
        ("profile --conv fast".to_owned(), "[possible values: mec, burn, im2col, paper]"),
        ("profile --backend wgpu --conv paper".to_owned(), "on the CPU"),
        ("profile --model resnet101 --batch 65536".to_owned(), "--force"),
        ("profile --plot picture.jpg".to_owned(), ".svg"),
        ("fit --memory lots".to_owned(), "2GiB"),
        ("fit --memory 999999GiB".to_owned(), "free"),
        ("fit".to_owned(), "--memory"),
    ] {
        let output = mec(&line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {errors}");
        assert!(errors.contains(says), "{line} says {errors}");
        assert!(output.stdout.is_empty(), "{line}");
    }
}
