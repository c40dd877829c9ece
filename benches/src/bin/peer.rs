//! A resident program that computes convolutions with mec-core when told to, so that a driver can
//! measure it in turn with programs of the same manners in whatever language.
//!
//! Commands come one a line on the standard input; each gets one line of JSON on the standard output:
//!
//! | command | answer |
//! |---|---|
//! | `setup NAME N H W CIN KH KW COUT STRIDE PAD DILATION GROUPS` | `{"ok":true}` |
//! | `run PASS CALLS MS`: that many calls, or as many as fit the time | `{"ms":[..]}` |
//! | `mem PASS`: one call | `{"peak_extra":..,"kept":..,"ms":..}`, bytes beside the result |
//! | `dump PASS PATH`: the result in a file, little-endian `f32` | `{"ok":true,"len":..}` |
//! | `quit` | none |
//!
//! What goes wrong is answered with `{"ok":false,"err":".."}`. The number of threads is rayon's
//! (`RAYON_NUM_THREADS`). Operands are those of `benches::fill`.

use std::io::{self, BufRead, Write};
use std::time::{Duration, Instant};

use benches::clock::timed;
use benches::{Pass, Problem};
use mec_core::{ConvOptions, Geometry};
use mec_profile::{PeakAlloc, measure};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

fn main() -> io::Result<()> {
    let mut problem = None;
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => continue,
            ["quit"] => break,
            _ => {}
        }
        let answer = answer(&mut problem, &words)
            .unwrap_or_else(|error| format!(r#"{{"ok":false,"err":{error:?}}}"#));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(problem: &mut Option<Problem>, words: &[&str]) -> Result<String, String> {
    if let ["setup", _name, sizes @ ..] = words {
        // The old operands go before the new ones come.
        *problem = None;
        *problem = Some(Problem::new(geometry(sizes)?));
        return Ok(r#"{"ok":true}"#.to_string());
    }
    let [command, pass, rest @ ..] = words else {
        return Err(format!("not a command: {}", words.join(" ")));
    };
    let problem = problem.as_ref().ok_or("no setup has come yet")?;
    let pass: Pass = pass.parse()?;
    let call = || problem.run(pass).map_err(|error| error.to_string());
    match (*command, rest) {
        ("run", [calls, milliseconds]) => {
            let calls: usize = calls.parse().map_err(|_| "the number of calls is a number")?;
            let milliseconds: f64 = milliseconds.parse().map_err(|_| "the time is a number")?;
            let time = Duration::try_from_secs_f64(milliseconds / 1e3)
                .map_err(|error| error.to_string())?;
            let begin = Instant::now();
            let mut took = Vec::with_capacity(calls.min(1 << 16));
            while took.len() < calls && (took.is_empty() || begin.elapsed() < time) {
                let (result, call) = timed(call);
                result?;
                took.push(call.wall.as_secs_f64() * 1e3);
            }
            Ok(format!(r#"{{"ms":{took:?}}}"#))
        }
        ("mem", []) => {
            let ((result, took), memory) = measure(|| timed(call));
            let bytes = (result?.len() * size_of::<f32>()) as isize;
            let (peak, kept) = (memory.peak as isize - bytes, memory.retained - bytes);
            let ms = took.wall.as_secs_f64() * 1e3;
            Ok(format!(r#"{{"peak_extra":{peak},"kept":{kept},"ms":{ms}}}"#))
        }
        ("dump", [path]) => {
            let result = call()?;
            let bytes: Vec<u8> = result.iter().flat_map(|value| value.to_le_bytes()).collect();
            std::fs::write(path, bytes).map_err(|error| format!("{path}: {error}"))?;
            Ok(format!(r#"{{"ok":true,"len":{}}}"#, result.len()))
        }
        _ => Err(format!("not a command: {}", words.join(" "))),
    }
}

fn geometry(sizes: &[&str]) -> Result<Geometry, String> {
    let sizes: Result<Vec<usize>, _> = sizes.iter().map(|size| size.parse()).collect();
    let sizes = sizes.map_err(|error| format!("a size is not a number: {error}"))?;
    let [n, h, w, channels_in, kernel_h, kernel_w, channels_out, stride, pad, dilation, groups] =
        sizes[..]
    else {
        return Err(format!("11 sizes make a layer, not {}", sizes.len()));
    };
    let options = ConvOptions {
        stride: [stride; 2],
        padding: [(pad, pad); 2],
        dilation: [dilation; 2],
        groups,
    };
    let weight = [channels_out, channels_in / groups.max(1), kernel_h, kernel_w];
    Geometry::new([n, channels_in, h, w], weight, &options).map_err(|error| error.to_string())
}
