//! Peak memory of every pass, by a counting allocator, for every layer of the catalogue.
//!
//! One test in its own program: the counts are of the whole process. Run with `--release`; the
//! layers are of full size.

use std::hint::black_box;

use mec_core::catalogue::{Layer, layers};
use mec_core::paper::{self, Solution};
use mec_core::{
    Element, Error, Footprint, Geometry, Pass, Plan, Settings, View, WORKSPACE_PER_THREAD,
    bias_gradient, forward, im2col, input_gradient, weight_bias_gradient,
};
use mec_profile::{PeakAlloc, measure};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

/// What is not ours and is counted all the same, at most: rayon hands jobs to threads and takes a
/// block of a queue now and then (1.5 KiB as measured), the test harness prints after a minute. The
/// promise has room for it.
const ALLOWANCE: usize = 4 << 10;

/// The tensors of a layer, filled with values that do not matter.
struct Tensors<T> {
    geometry: Geometry,
    x: Vec<T>,
    weight: Vec<T>,
    dy: Vec<T>,
    bias: Vec<T>,
}

impl<T: Element + From<f32>> Tensors<T> {
    fn new(geometry: Geometry) -> Self {
        let filled = |shape: &[usize]| vec![T::from(0.5); shape.iter().product()];
        Self {
            x: filled(&geometry.input_shape()),
            weight: filled(&geometry.weight_shape()),
            dy: filled(&geometry.output_shape()),
            bias: filled(&[geometry.channels_out]),
            geometry,
        }
    }

    fn x(&self) -> View<'_, T> {
        View::contiguous(&self.x, self.geometry.input_shape()).unwrap()
    }

    fn weight(&self) -> View<'_, T> {
        View::contiguous(&self.weight, self.geometry.weight_shape()).unwrap()
    }

    fn dy(&self) -> View<'_, T> {
        View::contiguous(&self.dy, self.geometry.output_shape()).unwrap()
    }

    /// Bytes that `pass` holds beside its arguments and its result, or the error it refuses with.
    /// The bias gradient comes with the weight's, as in training.
    fn workspace(&self, pass: Pass, settings: &Settings) -> Result<usize, Error> {
        let (g, x, weight, dy) = (&self.geometry, &self.x(), &self.weight(), &self.dy());
        match pass {
            Pass::Forward => {
                beside(self.dy.len(), || forward(g, settings, x, weight, Some(&self.bias)))
            }
            Pass::InputGradient => beside(self.x.len(), || input_gradient(g, settings, dy, weight)),
            // With the bias gradient, which takes no less than the weight gradient by itself.
            Pass::WeightGradient => {
                let (result, memory) = measure(|| weight_bias_gradient(g, settings, x, dy));
                let (dw, db) = result?;
                assert_eq!((dw.len(), db.len()), (self.weight.len(), self.bias.len()));
                Ok(memory.peak - (dw.len() + db.len()) * size_of::<T>())
            }
            Pass::BiasGradient => beside(self.bias.len(), || bias_gradient(g, dy)),
        }
    }
}

const PASSES: [Pass; 4] =
    [Pass::Forward, Pass::InputGradient, Pass::WeightGradient, Pass::BiasGradient];

/// Peak of `run` less its result of `len` elements.
fn beside<T>(len: usize, run: impl FnOnce() -> Result<Vec<T>, Error>) -> Result<usize, Error> {
    let (result, memory) = measure(run);
    assert_eq!(result?.len(), len);
    Ok(memory.peak - len * size_of::<T>())
}

fn pools() -> Vec<ThreadPool> {
    [1, 2]
        .into_iter()
        .map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
        .collect()
}

/// The promise: at most 1 MiB for each thread, whatever the layer and the batch size.
fn the_promise<T: Element + From<f32>>(layer: &Layer, batch: usize, pools: &[ThreadPool]) {
    let tensors = Tensors::<T>::new(layer.geometry(batch));
    for pool in pools {
        let threads = pool.current_num_threads();
        let promised = WORKSPACE_PER_THREAD * threads;
        let at = format!("{} at batch {batch}, {threads} threads", layer.name);
        for pass in PASSES {
            let workspace = pool
                .install(|| tensors.workspace(pass, &Settings::default()))
                .unwrap_or_else(|error| panic!("{at}: {pass}: {error}"));
            println!("{at}: {pass}: {workspace} bytes of {}", std::any::type_name::<T>());
            assert!(workspace <= promised, "{at}: the {pass} takes {workspace} bytes");
            let settings = Settings::default();
            let plan = pool.install(|| Plan::new::<T>(&tensors.geometry, pass, &settings)).unwrap();
            assert!(
                workspace <= plan.workspace_bytes + ALLOWANCE,
                "{at}: the {pass} takes {workspace} bytes, planned {}",
                plan.workspace_bytes
            );
        }
    }
}

/// A limit below the promise is kept, or refused with a minimum that is kept.
fn limits(layer: &Layer, pools: &[ThreadPool]) {
    let tensors = Tensors::<f32>::new(layer.geometry(1));
    let with = |limit| Settings { workspace_limit: Some(limit), ..Settings::default() };
    for pool in pools {
        let at = format!("{}, {} threads", layer.name, pool.current_num_threads());
        for pass in PASSES {
            for limit in [0, 256 << 10] {
                let run = |limit| pool.install(|| tensors.workspace(pass, &with(limit)));
                let (limit, workspace) = match run(limit) {
                    Err(Error::WorkspaceLimit { minimum, .. }) => (minimum, run(minimum)),
                    workspace => (limit, workspace),
                };
                let workspace = workspace.unwrap_or_else(|error| panic!("{at}: {pass}: {error}"));
                assert!(
                    workspace <= limit + ALLOWANCE,
                    "{at}: the {pass} takes {workspace} bytes within {limit}"
                );
            }
        }
    }
}

/// Handing out jobs takes no more than is allowed for it, once the threads have started.
fn the_allowance(pools: &[ThreadPool]) {
    for pool in pools {
        let call = || pool.install(|| (0..64).into_par_iter().for_each(|i| _ = black_box(i)));
        pool.broadcast(|_| ());
        call();
        let most = (0..1000).map(|_| measure(call).1.peak).max().unwrap_or(0);
        println!("rayon, {} threads: {most} bytes", pool.current_num_threads());
        assert!(most <= ALLOWANCE, "rayon takes {most} bytes for a call");
    }
}

/// What the paper's algorithm and im2col say they take is what they take: no less, little more.
fn the_yardsticks(layer: &Layer, batch: usize) {
    let tensors = Tensors::<f32>::new(layer.geometry(batch));
    let (g, x, weight) = (&tensors.geometry, &tensors.x(), &tensors.weight());
    let check = |what: &str, stated: usize, run: &dyn Fn() -> Result<Vec<f32>, Error>| {
        let measured = beside(tensors.dy.len(), run).unwrap();
        let at = format!("{} at batch {batch}: {what}", layer.name);
        println!("{at}: {measured} bytes, stated {stated}");
        assert!(measured <= stated + ALLOWANCE, "{at} takes {measured} bytes, not {stated}");
        // What the GEMM packs is stated for the largest micro-kernel it has.
        assert!(measured >= stated - stated / 10, "{at} takes {measured} bytes, not {stated}");
    };
    let footprint = Footprint::of(g);
    for solution in [Solution::A, Solution::B] {
        if solution == Solution::A && footprint.output > footprint.lowered {
            continue;
        }
        check(
            &format!("the paper, Solution {solution:?}"),
            paper::workspace_bytes(g, Some(solution), size_of::<f32>()),
            &|| paper::forward(g, Some(solution), x, weight, Some(&tensors.bias)),
        );
    }
    check("im2col", im2col::workspace_bytes(g, size_of::<f32>()), &|| {
        im2col::forward(g, x, weight, Some(&tensors.bias))
    });
}

#[test]
fn peak_memory_is_as_promised() {
    let pools = pools();
    the_allowance(&pools);
    for layer in layers() {
        for &batch in &layer.batches {
            the_promise::<f32>(&layer, batch, &pools);
        }
        the_promise::<f64>(&layer, layer.batches[0], &pools);
        limits(&layer, &pools);
        the_yardsticks(&layer, layer.batches[0]);
    }
}
