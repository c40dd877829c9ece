//! Every layer of the catalogue, forward and both gradients: mec-core by itself and through Burn,
//! beside what burn-flex and burn-ndarray compute themselves, beside what the machine can do.
//!
//! Contenders take turns in short bursts, so that a ratio holds when the machine drifts. The first
//! result of each is compared with the first contender's: figures of a wrong result do not exist.

mod contenders;
mod machine;
mod report;

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use benches::clock::{Took, timed, waited};
use benches::roofline::{Copies, fma_peak};
use benches::{Pass, Problem, ROUNDING, difference, median, select};
use clap::Parser;
use mec_profile::{PeakAlloc, measure};

use contenders::{Contender, NAMES, contender};
use machine::Machine;
use report::{Line, Measured, Record, table};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

/// Convolutions of the catalogue's layers: ours, Burn's, and what the machine allows.
#[derive(Debug, Parser)]
struct Options {
    /// Layers to measure: `cv9` for each batch size of it, `cv9b32` for one [default: all]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Passes to measure
    #[arg(long, value_delimiter = ',', default_values_t = Pass::ALL)]
    passes: Vec<Pass>,
    /// Whom to measure; the others are compared with the first
    #[arg(long, value_delimiter = ',', default_values = NAMES, value_parser = NAMES)]
    contenders: Vec<String>,
    /// Threads of the pool that all contenders compute on [default: as many as processors]
    #[arg(long)]
    threads: Option<usize>,
    /// Turns of each contender on each layer and pass
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Time of one turn, in milliseconds; a turn is at least one call
    #[arg(long, default_value_t = 120)]
    burst: u64,
    /// Seconds that a call may take, by prediction, to be made at all
    #[arg(long, default_value_t = 10.0)]
    longest: f64,
    /// A file to add the record to, one line of JSON for each measurement
    #[arg(long)]
    json: Option<PathBuf>,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let cases = select(&options.layers)?;
    // As in a user's program, whose main thread is none of the pool's.
    let mut pool = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = options.threads {
        pool = pool.num_threads(threads);
    }
    pool.build_global()?;

    let mut record = Record::open(options.json.as_deref())?;
    let machine = Machine::here();
    println!("{machine:#?}\n");
    record.add(Line::Machine(&machine))?;

    let mut bench = Bench {
        options: &options,
        copies: Copies::new(256 << 20),
        rates: HashMap::new(),
        measured: Vec::new(),
        record,
    };
    for (layer, batch) in &cases {
        let problem = Rc::new(Problem::new(layer.geometry(*batch)));
        let entrants: Vec<(&str, Box<dyn Contender>)> = options
            .contenders
            .iter()
            .filter_map(|name| Some((name.as_str(), contender(name, &problem)?)))
            .collect();
        for &pass in &options.passes {
            eprintln!("{} b{batch} {pass}", layer.name);
            bench.measure(&layer.name, &problem, pass, &entrants)?;
        }
    }
    let measured = bench.measured;
    for &pass in &options.passes {
        println!("{}\n", table(pass, &options.contenders, &measured));
    }
    println!("{} threads; {}", rayon::current_num_threads(), quietness(&measured));
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    copies: Copies,
    /// Operations a second that each contender last did of each pass.
    rates: HashMap<(String, Pass), f64>,
    measured: Vec<Measured>,
    record: Record,
}

/// A contender under way on one layer and pass.
struct Run<'a> {
    name: &'a str,
    contender: &'a dyn Contender,
    /// How long the first call took.
    first: Duration,
    workspace_bytes: isize,
    difference: f64,
    calls: Vec<Took>,
    /// Time measured, and how much of it our threads waited.
    time: Duration,
    waited: Duration,
}

impl Bench<'_> {
    fn measure(
        &mut self,
        layer: &str,
        problem: &Problem,
        pass: Pass,
        entrants: &[(&str, Box<dyn Contender>)],
    ) -> Result<(), Box<dyn Error>> {
        let geometry = &problem.geometry;
        let flops = geometry.flops() as f64;
        let threads = rayon::current_num_threads();
        let burst = Duration::from_millis(self.options.burst);

        let mut runs: Vec<Run> = Vec::new();
        let mut expected: Option<Vec<f32>> = None;
        for (name, contender) in entrants {
            let key = (name.to_string(), pass);
            let predicted = self.rates.get(&key).map_or(0.0, |rate| flops / rate);
            if predicted > self.options.longest {
                self.record.add(Line::Skipped {
                    contender: name,
                    layer,
                    batch: geometry.batch,
                    pass: pass.to_string(),
                    threads,
                    predicted_ms: predicted * 1e3,
                })?;
                continue;
            }
            let ((outcome, took), memory) = measure(|| timed(|| contender.call(pass)));
            self.rates.insert(key, flops / took.wall.as_secs_f64());
            let values = outcome.values();
            let workspace_bytes = memory.peak as isize - size_of_val(&values[..]) as isize;
            let difference = match &expected {
                Some(expected) => difference(&values, expected),
                None => 0.0,
            };
            if difference.is_nan() || difference > ROUNDING {
                return Err(format!(
                    "{layer} b{} {pass}: {name} differs from {} by {difference:e} of the largest",
                    geometry.batch, entrants[0].0
                )
                .into());
            }
            expected.get_or_insert(values);
            runs.push(Run {
                name,
                contender: contender.as_ref(),
                first: took.wall,
                workspace_bytes,
                difference,
                calls: Vec::new(),
                time: Duration::ZERO,
                waited: Duration::ZERO,
            });
        }
        drop(expected);

        let (mut peaks, mut copies) = (Vec::new(), Vec::new());
        for round in 0..self.options.rounds {
            copies.push(self.copies.bandwidth());
            for run in &mut runs {
                peaks.extend((0..5).map(|_| fma_peak()));
                // One more call tells enough of what takes many bursts.
                if round == 0 || run.first < 10 * burst {
                    run.turn(pass, burst);
                }
            }
        }

        let middle = |values: Vec<f64>| median(values).ok_or("no rounds, no figures");
        let (fma_peak_gflops, copy_gbps) = (middle(peaks)?, middle(copies)?);
        let elements = [problem.x.len(), problem.weight.len(), problem.dy.len()];
        let bytes = (elements.iter().sum::<usize>() * size_of::<f32>()) as f64;
        for run in runs {
            let walls = run.calls.iter().map(|took| took.wall.as_secs_f64());
            let seconds = middle(walls.clone().collect())?;
            let cpu: f64 = run.calls.iter().map(|took| took.cpu.as_secs_f64()).sum();
            let gflops = flops / seconds / 1e9;
            let measured = Measured {
                contender: run.name.to_string(),
                layer: layer.to_string(),
                batch: geometry.batch,
                pass,
                threads,
                calls: run.calls.len(),
                ms: seconds * 1e3,
                fastest_ms: walls.fold(f64::INFINITY, f64::min) * 1e3,
                cpu_ms: cpu * 1e3 / run.calls.len() as f64,
                gflops,
                fma_peak_gflops,
                fma_percent: 100.0 * gflops / fma_peak_gflops,
                copy_gbps,
                copy_percent: 100.0 * bytes / seconds / 1e9 / copy_gbps,
                workspace_bytes: run.workspace_bytes,
                difference: run.difference,
                waiting: run.waited.as_secs_f64() / run.time.as_secs_f64(),
            };
            self.record.add(Line::Measured(&measured))?;
            self.measured.push(measured);
        }
        Ok(())
    }
}

/// Before each contender's turn.
const PAUSE: Duration = Duration::from_millis(20);

impl Run<'_> {
    /// Calls until the burst is over.
    fn turn(&mut self, pass: Pass, burst: Duration) {
        // Rayon's workers look for work for a while after the contender before.
        std::thread::sleep(PAUSE);
        let (begin, waited_before) = (Instant::now(), waited());
        let mut calls = Vec::new();
        while calls.is_empty() || begin.elapsed() < burst {
            // The result lives until the clock has stopped.
            let (_outcome, took) = timed(|| self.contender.call(pass));
            calls.push(took);
        }
        self.time += begin.elapsed();
        self.waited += waited().saturating_sub(waited_before);
        // The first call finds the caches as somebody else left them. All contenders are alike in
        // that, but it is not what repeats; a contender of few calls has none to spare.
        let cold = usize::from(calls.len() > 3);
        self.calls.extend(calls.drain(cold..));
    }
}

/// How far the figures can be trusted.
fn quietness(measured: &[Measured]) -> String {
    // Burn's own run on the pool's threads beside this one, more than there are processors.
    let ours = measured.iter().filter(|m| m.contender.starts_with("mec")).map(|m| m.waiting);
    let waiting = median(ours.clone()).unwrap_or(0.0);
    let worst = ours.fold(0.0, f64::max);
    let advice = if worst > 0.05 { ": others were at work; measure again" } else { "" };
    format!(
        "our threads waited for a processor {:.1} % of the time (median; at worst {:.1} %){advice}",
        waiting * 100.0,
        worst * 100.0
    )
}
