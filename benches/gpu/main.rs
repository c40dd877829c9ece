//! The catalogue's layers on a GPU (or on software that plays one): ours beside Burn's own convolution,
//! autotuned and warmed up, forward and both gradients.
//!
//! The two take turns in bursts of calls, each burst waited for as a whole, so that a ratio holds when
//! the machine drifts. What the first call of each takes, compilation and autotune included, is reported
//! apart. The first result is compared: figures of a wrong result do not exist.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use benches::{Pass, Problem, ROUNDING, difference, geometric_mean, median, select};
use burn::backend::ops::{FloatTensorOps, ModuleOps};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, try_read_sync};
use burn::tensor::TensorData;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_mec::ops::{Bias, Conv2dBackend, Conv2dGradients};
use burn_mec::{Algorithm, Settings};
use clap::{Parser, ValueEnum};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use mec_core::Geometry;
use serde::{Deserialize, Serialize};

/// Convolutions of the catalogue's layers on a GPU: ours and Burn's own.
#[derive(Debug, Parser)]
struct Options {
    /// Layers to measure: `cv9` for each batch size of it, `cv9b32` for one [default: all]
    #[arg(long, value_delimiter = ',')]
    layers: Vec<String>,
    /// Passes to measure
    #[arg(long, value_delimiter = ',', default_values_t = Pass::ALL)]
    passes: Vec<Pass>,
    /// Largest batch size: a larger one of the catalogue is reduced to it. For software devices
    #[arg(long)]
    batch: Option<usize>,
    /// How the operands lie in memory
    #[arg(long, value_enum, default_value_t = Layout::Nhwc)]
    layout: Layout,
    /// Which of ours
    #[arg(long, value_enum, default_value_t = Ours::Auto)]
    algorithm: Ours,
    /// How the device is driven: those beyond `wgpu` take a feature of the same name
    #[arg(long, value_enum, default_value_t = Api::Wgpu)]
    api: Api,
    /// Turns of each contender on each layer and pass
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Time of one turn, in milliseconds; a turn is at least one call
    #[arg(long, default_value_t = 100)]
    burst: u64,
    /// Time of calls before the turns, in milliseconds: a card takes some to raise its clocks, which
    /// fall while kernels are compiled
    #[arg(long, default_value_t = 300)]
    warm_up: u64,
    /// Leave Burn's own out
    #[arg(long)]
    alone: bool,
    /// A file to add the record to, one line of JSON for each measurement
    #[arg(long)]
    json: Option<PathBuf>,
    /// Print the tables of such a file and measure nothing
    #[arg(long, conflicts_with = "json")]
    from: Option<PathBuf>,
    /// What `cargo bench` says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// Channels innermost: as a convolution before leaves them
    Nhwc,
    /// Channels outermost: as they come from data
    Nchw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ours {
    Auto,
    Strip,
    Paper,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Api {
    Wgpu,
    Vulkan,
    Cuda,
    Rocm,
}

/// One contender on one pass of one layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    contender: String,
    layer: String,
    batch: usize,
    pass: Pass,
    /// The first call, with all that is compiled or tried for it.
    first_ms: f64,
    /// A later one, median of the rounds.
    ms: f64,
    gflops: f64,
    /// Largest difference from our result, in units of its largest value.
    difference: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    if let Some(file) = &options.from {
        let text = std::fs::read_to_string(file)?;
        // The other lines tell of devices.
        let measured: Vec<_> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        print_tables(&options.passes, &measured);
        return Ok(());
    }
    let device = match options.api {
        Api::Wgpu => CubeDevice::wgpu(Default::default())?,
        Api::Vulkan => CubeDevice::vulkan(Default::default())?,
        Api::Cuda => CubeDevice::cuda(0)?,
        Api::Rocm => CubeDevice::rocm(0)?,
    };
    let properties = device.client().properties().clone();
    let mut record = options
        .json
        .as_ref()
        .map(|path| File::options().append(true).create(true).open(path))
        .transpose()?;
    let facts = serde_json::json!({
        "kind": "device",
        "name": properties.identity.name,
        "layout": format!("{:?}", options.layout),
        "algorithm": format!("{:?}", options.algorithm),
        "hardware": format!("{:?}", properties.hardware),
    });
    println!("{}\n{:#?}\n", properties.identity.name, properties.hardware);
    if let Some(file) = &mut record {
        writeln!(file, "{facts}")?;
    }

    let mut measured: Vec<Measured> = Vec::new();
    for (layer, batch) in select(&options.layers)? {
        let batch = options.batch.map_or(batch, |most| most.min(batch));
        let name = format!("{} b{batch}", layer.name);
        if measured.iter().any(|m| m.layer == layer.name && m.batch == batch) {
            continue; // reduced to one that has been measured
        }
        let problem = Problem::new(layer.geometry(batch));
        let operands = Operands::new(&problem, &options, &device);
        for &pass in &options.passes {
            eprintln!("{name} {pass}");
            let pair = operands.compare(pass, &options)?;
            for (contender, first, ms, difference) in pair {
                let gflops = problem.geometry.flops() as f64 / ms / 1e6;
                let layer = layer.name.clone();
                let first_ms = first;
                let one = Measured {
                    contender: contender.into(),
                    layer,
                    batch,
                    pass,
                    first_ms,
                    ms,
                    gflops,
                    difference,
                };
                if let Some(file) = &mut record {
                    writeln!(file, "{}", serde_json::to_string(&one)?)?;
                }
                measured.push(one);
            }
        }
    }
    print_tables(&options.passes, &measured);
    Ok(())
}

fn print_tables(passes: &[Pass], measured: &[Measured]) {
    for &pass in passes {
        println!("{}\n", table(pass, measured));
    }
}

/// A contender, its first call and its later ones in milliseconds, and how far its result is from ours.
type Timing = (&'static str, f64, f64, f64);

/// The operands of one layer on the device.
struct Operands {
    x: FloatTensor<CubeBackend>,
    weight: FloatTensor<CubeBackend>,
    dy: FloatTensor<CubeBackend>,
    geometry: Geometry,
    settings: Settings,
    device: CubeDevice,
}

impl Operands {
    fn new(problem: &Problem, options: &Options, device: &CubeDevice) -> Self {
        let tensor = |values: &[f32], shape: [usize; 4]| {
            CubeBackend::float_from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let image = |values: &[f32], shape: [usize; 4]| {
            let tensor = tensor(values, shape);
            if options.layout == Layout::Nchw {
                return tensor;
            }
            let last = CubeBackend::float_permute(tensor, &[0, 2, 3, 1]);
            let last = burn_cubecl::kernel::into_contiguous(last);
            CubeBackend::float_permute(last, &[0, 3, 1, 2])
        };
        let g = problem.geometry;
        let algorithm = match options.algorithm {
            Ours::Auto => Algorithm::Auto,
            Ours::Strip => Algorithm::Strip,
            Ours::Paper => Algorithm::Paper,
        };
        Self {
            x: image(&problem.x, g.input_shape()),
            weight: tensor(&problem.weight, g.weight_shape()),
            dy: image(&problem.dy, g.output_shape()),
            geometry: g,
            settings: Settings { algorithm, workspace_limit: None },
            device: device.clone(),
        }
    }

    fn ours(&self, pass: Pass) -> FloatTensor<CubeBackend> {
        let (g, s) = (self.geometry, self.settings);
        let (x, weight, dy) = (self.x.clone(), self.weight.clone(), self.dy.clone());
        match pass {
            Pass::Forward => CubeBackend::mec_conv2d(x, weight, Bias::Absent, None, g, s),
            Pass::InputGradient => CubeBackend::mec_conv2d_input_gradient(dy, weight, g, s),
            Pass::WeightGradient => CubeBackend::mec_conv2d_weight_gradient(x, dy, g, s),
        }
    }

    fn burns(&self, pass: Pass) -> FloatTensor<CubeBackend> {
        let (h, w) = (&self.geometry.height, &self.geometry.width);
        let options = ConvOptions::new_with_padding(
            [h.stride, w.stride],
            [(h.pad_before, h.pad_after), (w.pad_before, w.pad_after)],
            [h.dilation, w.dilation],
            self.geometry.groups,
        );
        let (x, weight, dy) = (self.x.clone(), self.weight.clone(), self.dy.clone());
        match pass {
            Pass::Forward => CubeBackend::conv2d(x, weight, None, options),
            Pass::InputGradient => CubeBackend::conv2d_x_backward(x, weight, dy, options),
            Pass::WeightGradient => CubeBackend::conv2d_weight_backward(x, weight, dy, options),
        }
    }

    fn call(&self, contender: &str, pass: Pass) -> FloatTensor<CubeBackend> {
        if contender == "burn" { self.burns(pass) } else { self.ours(pass) }
    }

    /// Ours and Burn's.
    fn compare(&self, pass: Pass, options: &Options) -> Result<Vec<Timing>, Box<dyn Error>> {
        let contenders: &[&'static str] = if options.alone { &["mec"] } else { &["mec", "burn"] };
        let burst = Duration::from_millis(options.burst);
        let sync = || CubeBackend::sync(&self.device).map_err(|error| format!("{error:?}"));
        let mut runs = Vec::new();
        let mut expected: Option<Vec<f32>> = None;
        for &name in contenders {
            sync()?;
            let begin = Instant::now();
            let result = self.call(name, pass);
            sync()?;
            let first = begin.elapsed();
            let data = try_read_sync(CubeBackend::float_into_data(result))
                .ok_or("the device does not answer at once")?
                .map_err(|error| format!("{error:?}"))?;
            let values = data.try_to_vec::<f32>().map_err(|error| format!("{error:?}"))?;
            let difference =
                expected.as_ref().map_or(0.0, |expected| difference(&values, expected));
            if difference.is_nan() || difference > ROUNDING {
                return Err(format!("{pass}: ours and Burn's differ by {difference:e}").into());
            }
            expected.get_or_insert(values);
            // The second call tells how many make a burst.
            let begin = Instant::now();
            drop(self.call(name, pass));
            sync()?;
            let calls = (burst.as_secs_f64() / begin.elapsed().as_secs_f64()).clamp(1.0, 200.0);
            runs.push((name, first, calls as usize, difference, Vec::new()));
        }
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(options.warm_up) {
            for &(name, ..) in &runs {
                drop(self.call(name, pass));
            }
            sync()?;
        }
        for _ in 0..options.rounds {
            for (name, _, calls, _, times) in &mut runs {
                let begin = Instant::now();
                for _ in 0..*calls {
                    drop(self.call(name, pass));
                }
                sync()?;
                times.push(begin.elapsed().as_secs_f64() * 1e3 / *calls as f64);
            }
        }
        Ok(runs
            .into_iter()
            .map(|(name, first, _, difference, times)| {
                let ms = median(times).unwrap_or(f64::NAN);
                (name, first.as_secs_f64() * 1e3, ms, difference)
            })
            .collect())
    }
}

/// A table of one pass in Markdown: times, and how many times ours Burn's is.
fn table(pass: Pass, measured: &[Measured]) -> String {
    let of =
        |contender: &'static str| move |m: &&Measured| m.contender == contender && m.pass == pass;
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN);
    table.set_header([
        &pass.to_string(),
        "mec ms",
        "GFLOP/s",
        "burn ms",
        "burn / mec",
        "first mec ms",
        "first burn ms",
    ]);
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    let mut ratios = Vec::new();
    for ours in measured.iter().filter(of("mec")) {
        let burns = measured
            .iter()
            .filter(of("burn"))
            .find(|m| m.layer == ours.layer && m.batch == ours.batch);
        ratios.extend(burns.map(|burns| burns.ms / ours.ms));
        let cell = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        table.add_row([
            format!("{} b{}", ours.layer, ours.batch),
            format!("{:.2}", ours.ms),
            format!("{:.1}", ours.gflops),
            cell(burns.map(|m| m.ms)),
            cell(burns.map(|m| m.ms / ours.ms)),
            format!("{:.0}", ours.first_ms),
            burns.map_or("-".into(), |m| format!("{:.0}", m.first_ms)),
        ]);
    }
    let mean = geometric_mean(ratios).map_or("-".into(), |mean| format!("{mean:.2}"));
    let blank = String::new;
    table.add_row(["geometric mean".into(), blank(), blank(), blank(), mean, blank(), blank()]);
    table.to_string()
}
