//! The program `peer`, spoken to as a driver does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use benches::{Pass, Problem};
use mec_core::{ConvOptions, Geometry, View, reference};

struct Peer {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Peer {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_peer"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    fn ask(&mut self, command: &str) -> serde_json::Value {
        writeln!(self.process.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

#[test]
fn answers_a_driver() {
    let mut peer = Peer::start();
    assert_eq!(peer.ask("run fwd 1 1")["ok"], false);
    assert_eq!(peer.ask("setup small 2 9 8 4 3 2 6 2 1 1")["ok"], false);
    assert_eq!(peer.ask("setup small 2 9 8 4 3 2 6 2 1 1 0")["ok"], false);
    assert_eq!(peer.ask("setup small 2 9 8 4 3 2 6 2 1 1 2")["ok"], true);

    let options =
        ConvOptions { stride: [2; 2], padding: [(1, 1); 2], groups: 2, ..Default::default() };
    let Problem { geometry, x, weight, dy } =
        Problem::new(Geometry::new([2, 4, 9, 8], [6, 2, 3, 2], &options).unwrap());
    let x = View::contiguous(&x, geometry.input_shape()).unwrap();
    let weight = View::contiguous(&weight, geometry.weight_shape()).unwrap();
    let dy = View::contiguous(&dy, geometry.output_shape()).unwrap();

    for pass in Pass::ALL {
        let times = peer.ask(&format!("run {pass} 3 10000"));
        assert_eq!(times["ms"].as_array().unwrap().len(), 3);
        assert_eq!(peer.ask(&format!("run {pass} 3 0"))["ms"].as_array().unwrap().len(), 1);
        let memory = peer.ask(&format!("mem {pass}"));
        let limit = rayon::current_num_threads() * mec_core::WORKSPACE_PER_THREAD;
        assert!((0..=limit as i64).contains(&memory["peak_extra"].as_i64().unwrap()), "{memory}");
        assert!(memory["ms"].as_f64().unwrap() > 0.0);

        let path = std::env::temp_dir().join(format!("peer-{}-{pass}", std::process::id()));
        let dumped = peer.ask(&format!("dump {pass} {}", path.display()));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let result: Vec<f32> =
            bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let expected = match pass {
            Pass::Forward => reference::forward(&geometry, &x, &weight, None),
            Pass::InputGradient => reference::input_gradient(&geometry, &dy, &weight),
            Pass::WeightGradient => reference::weight_gradient(&geometry, &x, &dy),
        };
        assert_eq!(dumped["len"], expected.len());
        assert_eq!(result.len(), expected.len());
        for (got, expected) in result.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-5, "{pass}: {got} instead of {expected}");
        }
    }
    assert_eq!(peer.ask("run everything 1 1")["ok"], false);
    writeln!(peer.process.stdin.as_mut().unwrap(), "quit").unwrap();
    assert!(peer.process.wait().unwrap().success());
}
