//! How near each layer comes to the FMA peak: for work on the kernels. With one thread by processor time, on a machine
//! that does other things too; with several by the wall, as those that wait awake for the next call count as at work.
//!
//! ```sh
//! cargo run --release -p benches --bin gflops -- 1 fwd cv9b32 cv10
//! ```
//!
//! The arguments are the threads, the pass (`fwd`, `bwdx`, `bwdw`) and the layers. With none, all of them,
//! and the bandwidth of a copy of 256 MiB before.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use benches::clock::timed;
use benches::{Pass, Problem, geometric_mean, median, roofline, select};

/// Calls for each layer: at least the first, then until the time or the second is reached.
const CALLS: (usize, usize) = (5, 200);
const TIME: Duration = Duration::from_millis(400);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gflops: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let usage = "the arguments are THREADS PASS [LAYER...]";
    let threads: usize = args.next().and_then(|n| n.parse().ok()).ok_or(usage)?;
    let pass: Pass = args.next().ok_or(usage)?.parse()?;
    let wanted: Vec<String> = args.collect();
    let cases = select(&wanted)?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| error.to_string())?;

    if wanted.is_empty() {
        let mut copies = roofline::Copies::new(256 << 20);
        let rate = median((0..5).map(|_| copies.bandwidth())).expect("five copies");
        println!("copy of 256 MiB: {rate:.1} GB/s read and written");
    }
    let mut shares = Vec::new();
    let by = if threads == 1 { "CPU" } else { "wall" };
    println!("layer    {by:>4} ms/call  GFLOP/s a thread    % of peak");
    for (layer, batch) in cases {
        let problem = Problem::new(layer.geometry(batch));
        let (mut peaks, mut calls) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        while calls.len() < CALLS.0 || begin.elapsed() < TIME && calls.len() < CALLS.1 {
            peaks.push(roofline::fma_peak_of_a_thread());
            let (result, took) = timed(|| problem.run(pass));
            black_box(result.map_err(|error| error.to_string())?);
            calls.push(took);
        }
        let times = calls.iter().map(|took| if threads == 1 { took.cpu } else { took.wall });
        let time = median(times.map(|time| time.as_secs_f64())).expect("at least one call");
        let rate = problem.geometry.flops() as f64 / (time * threads as f64) / 1e9;
        let peak = median(peaks).expect("at least one call");
        println!(
            "{:8} {:12.3} {rate:17.1} {:6.1} of {peak:.0}",
            format!("{}b{batch}", layer.name),
            time * 1e3,
            100.0 * rate / peak,
        );
        shares.push(rate / peak);
    }
    let mean = geometric_mean(shares).expect("at least one layer");
    println!("geometric mean {:.1} %", 100.0 * mean);
    Ok(())
}
