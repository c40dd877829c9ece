//! `Algorithm::Strip`, MEC whose lowered matrix exists one packed panel at a time, and `Algorithm::Winograd`,
//! whose transformed input does.
//!
//! - `correlation`: the problem, in the one form that serves forward pass and input gradient;
//! - `strips`: how it is cut, as plain data; `panel`: packing; `engine`: the loops, and in
//!   `engine/weights` where they find their weights;
//! - `weight_gradient`: the weight gradient, each form's plan and loops;
//! - `winograd`: all three passes with fewer multiplications, where that is sooner;
//! - `patches`: the forward pass of few positions; `stream`: that of few input channels; `positions`: its panels, and
//!   those of the weight gradient there;
//! - `depthwise`: plane by plane, read where they lie or by `depthwise/stage`; `bias_gradient`;
//! - `buffer`: memory; `workers`: threads.
//!
//! This file plans a pass and runs the plan.

mod bias_gradient;
mod buffer;
mod cores;
mod correlation;
mod depthwise;
mod direct;
mod engine;
mod helpers;
mod panel;
mod patches;
mod positions;
mod space;
mod stream;
mod strips;
mod weight_gradient;
mod winograd;
mod workers;

use crate::kernel::{FEW, Kernel, MAX_VECTORS};
use crate::plan::Piece;
use crate::{Algorithm, Element, Error, Geometry, Pass, Settings, View, WORKSPACE_PER_THREAD};
use buffer::Fresh;
use correlation::Correlation;
pub use correlation::Reach;
use depthwise::stage;
use engine::{Job, Operands};
use patches::Patches;
use stream::Stream;
use strips::{Strips, TileSize};
use weight_gradient::{Division, Plain};

/// What the thread pool may take of a thread's bound for its own jobs.
const RESERVED: usize = 16 << 10;

/// Operations for which one more thread is worth its start, of some 10 us: 28 x 28 with 5 x 5 and 6 outputs (0.2 million)
/// took 4 us on one thread and 13 on two, 28 x 28 depthwise with 64 channels (0.9 million) 20 and 21, 14 x 14 pointwise
/// with 64 (1.6 million) 48 and 41 in the weight gradient.
const FLOPS_OF_A_THREAD: u128 = 1 << 20;

/// Tasks of each thread where all share a panel that a thread packs once: one that is slower, or interrupted, leaves some
/// to the others. With one each, where one of two threads had two thirds of a core, 3 x 3 on 14 x 14 with 128 channels took
/// 1.3 times as long and 1 x 1 with 256 to 1024 1.3 to 1.4 times.
const SHARES: usize = 4;

/// As many parts of a group's `tiles` of output channels, each of the same number, where there are enough for all
/// `threads` as it is.
fn more_parts(parts: usize, tiles: usize, groups: usize, threads: usize) -> usize {
    if parts == 1 || parts * groups < threads {
        return parts;
    }
    let even = |more: &usize| tiles.is_multiple_of(*more);
    (parts..=parts * SHARES).rev().find(even).unwrap_or(parts)
}

/// What a plan needs to know of how tensors lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// The rows of each plane follow each other without a gap.
    rows_join: bool,
    /// The columns of each row do.
    columns_join: bool,
    /// So do the weights of each output channel.
    weights_join: bool,
}

impl Layout {
    /// Row-major.
    pub const CONTIGUOUS: Self = Self { rows_join: true, columns_join: true, weights_join: true };

    fn of<T>(view: &View<T>) -> Self {
        let (shape, strides) = (view.shape(), view.strides());
        Self {
            rows_join: strides[2] == shape[3] as isize * strides[3],
            columns_join: strides[3] == 1,
            weights_join: false,
        }
    }

    /// The same beside `weight`.
    fn with_weights<T>(self, weight: &View<T>) -> Self {
        let [_, _, height, width] = weight.shape().map(|len| len as isize);
        let [_, channel, row, column] = weight.strides();
        Self { weights_join: [channel, row, column] == [height * width, width, 1], ..self }
    }

    fn and(self, other: Self) -> Self {
        Self {
            rows_join: self.rows_join && other.rows_join,
            columns_join: self.columns_join && other.columns_join,
            weights_join: self.weights_join && other.weights_join,
        }
    }
}

/// Each correlation with the plan that `plan` makes, in a list no longer than is counted; `None` if one has none.
fn planned<P>(
    correlations: &[Correlation],
    plan: impl Fn(&Correlation) -> Option<P>,
) -> Option<Vec<(Correlation, P)>> {
    let mut jobs = Vec::with_capacity(correlations.len());
    for c in correlations {
        jobs.push((*c, plan(c)?));
    }
    Some(jobs)
}

/// How a pass is computed.
enum Method {
    /// Correlations, each with its plan; before them those that do the same with fewer multiplications, if
    /// they are sooner. The plain ones are then for results that are not finite.
    Correlations(Option<Vec<winograd::Job>>, Vec<Job>),
    /// The blocks of a weight gradient, likewise.
    Blocks(Box<(Correlation, Option<winograd::Blocks>, Plain)>),
    /// Straight from the input, for few output channels.
    Direct(Vec<direct::Job>),
    /// Streams of output, for few input channels.
    Stream(Box<(Correlation, Stream)>),
    /// Patches, for few positions.
    Patches(Box<(Correlation, Patches)>),
    /// Planes, without workspace.
    Planes,
    /// Planes that are staged.
    Staged(Vec<stage::Job>),
    /// Zeros: there is nothing to sum.
    Zeros,
}

/// A planned pass.
pub(crate) struct Work {
    method: Method,
    /// Most threads that take part.
    pub threads: usize,
    /// Most bytes they hold together.
    pub workspace_bytes: usize,
}

impl Work {
    /// Plans `pass` within the limit.
    pub fn new<T: Element>(
        kernel: &Kernel<T>,
        g: &Geometry,
        pass: Pass,
        settings: &Settings,
        layout: Layout,
    ) -> Result<Self, Error> {
        let worth = usize::try_from(g.flops() / FLOPS_OF_A_THREAD).unwrap_or(usize::MAX);
        let threads = rayon::current_num_threads().min(worth.saturating_add(1));
        let planes = g.is_depthwise() && layout.columns_join;
        if pass == Pass::BiasGradient || planes && depthwise::in_place(kernel, g, pass) {
            return Ok(Self { method: Method::Planes, threads, workspace_bytes: 0 });
        }
        let forward = || Correlation::forward(g, layout.rows_join, kernel.lanes);
        let gradient =
            |apart| Correlation::input_gradient(g, layout.rows_join, kernel.lanes, apart);
        let strip = kernel.vectors * kernel.lanes;
        let general = || match pass {
            Pass::WeightGradient => {
                let joined = layout.rows_join && layout.columns_join;
                Self::blocks(kernel, forward(), settings, joined, threads)
            }
            Pass::InputGradient => {
                let apart = || gradient(true);
                let to_space = Correlation::input_gradient_to_space(g);
                let (joint, apart) = (gradient(false), (apart, to_space));
                let joint: Vec<_> = joint.into_iter().flat_map(|c| c.in_rows(strip)).collect();
                Self::correlations(kernel, pass, &joint, apart, settings, threads)
            }
            _ => {
                let c = forward();
                let apart = || vec![c];
                Self::correlations(
                    kernel,
                    pass,
                    &c.in_rows(strip),
                    (apart, None),
                    settings,
                    threads,
                )
            }
        };
        let special = match pass {
            // These forms have one way to multiply.
            _ if fewer(settings.algorithm) == Some(true) => None,
            Pass::InputGradient if planes => {
                Self::staged(kernel, gradient(false), pass, settings, threads)
            }
            _ if planes => Self::staged(kernel, vec![forward()], pass, settings, threads),
            Pass::InputGradient if layout.columns_join && depthwise::adds_in_place(kernel, g) => {
                Some(Self { method: Method::Planes, threads, workspace_bytes: 0 })
            }
            Pass::InputGradient if layout.columns_join => {
                Self::direct(kernel, gradient(false), settings, threads)
            }
            Pass::Forward => {
                let stream = |c: &_, each| {
                    let plan = Stream::new(c, kernel, threads, each)?;
                    Some((plan, plan.worker_bytes::<T>(c), plan.tasks(c)))
                };
                let patches = |c: &_, each| {
                    let plan = Patches::new(c, kernel, threads, each)?;
                    Some((plan, plan.worker_bytes::<T>(c), plan.tasks(c)))
                };
                let stream = Self::single(forward(), settings, threads, stream, Method::Stream);
                stream.or_else(|| {
                    let c = layout.weights_join.then(forward)?;
                    Self::single(c, settings, threads, patches, Method::Patches)
                })
            }
            _ => None,
        };
        match special {
            // A limit that is too low for the general form is refused for all.
            Some(special) if settings.workspace_limit.is_some() => general().map(|_| special),
            Some(special) => Ok(special),
            None => general(),
        }
    }

    /// Plans a depthwise convolution by stages, where the limit has room for them.
    fn staged<T: Element>(
        kernel: &Kernel<T>,
        correlations: Vec<Correlation>,
        pass: Pass,
        settings: &Settings,
        threads: usize,
    ) -> Option<Self> {
        let mut planes = correlations.first().map_or(0, |c| c.batch * c.groups);
        if pass == Pass::WeightGradient {
            if planes == 0 || correlations.iter().any(|c| c.channels == 0) {
                return None;
            }
            planes /= correlations[0].batch;
        }
        // The list of jobs, while it is made from the list of correlations.
        let shared = correlations.len() * (size_of::<stage::Job>() + size_of::<Correlation>());
        let limit = settings.workspace_limit.unwrap_or(usize::MAX).checked_sub(shared)?;
        let room = limit.min(WORKSPACE_PER_THREAD - RESERVED);
        let jobs = planned(&correlations, |c| stage::Stage::new(c, kernel, room))?;
        let worker = stage::worker_bytes::<T>(&jobs);
        if worker > room {
            return None;
        }
        let threads = threads.min(planes).min(limit / worker.max(1)).max(1);
        let workspace_bytes = shared + threads * worker;
        Some(Self { method: Method::Staged(jobs), threads, workspace_bytes })
    }

    /// Plans sums straight from the input, where they are sooner and within the limit.
    fn direct<T: Element>(
        kernel: &Kernel<T>,
        correlations: Vec<Correlation>,
        settings: &Settings,
        threads: usize,
    ) -> Option<Self> {
        // The list of jobs, while it is made from the list of correlations.
        let shared = correlations.len() * (size_of::<direct::Job>() + size_of::<Correlation>());
        let limit = settings.workspace_limit.unwrap_or(usize::MAX).checked_sub(shared)?;
        let jobs = planned(&correlations, |c| direct::Direct::new(c, kernel, threads))?;
        let worker = direct::worker_bytes::<T>(&jobs);
        if worker > limit.min((WORKSPACE_PER_THREAD - RESERVED).saturating_sub(shared)) {
            return None;
        }
        let threads = threads.min(direct::tasks(&jobs)).min((limit / worker).max(1));
        let workspace_bytes = shared + threads * worker;
        Some(Self { method: Method::Direct(jobs), threads, workspace_bytes })
    }

    /// Plans one correlation in a form of its own, where that is sooner and within the limit: `plan` says how for at most
    /// so many bytes in each thread, the bytes it takes there and its tasks.
    fn single<P>(
        c: Correlation,
        settings: &Settings,
        threads: usize,
        plan: impl FnOnce(&Correlation, usize) -> Option<(P, usize, usize)>,
        method: fn(Box<(Correlation, P)>) -> Method,
    ) -> Option<Self> {
        let shared = size_of::<(Correlation, P)>();
        let limit = settings.workspace_limit.unwrap_or(usize::MAX).checked_sub(shared)?;
        let each = limit.min(WORKSPACE_PER_THREAD - RESERVED - shared);
        let (plan, worker, tasks) = plan(&c, each)?;
        let threads = threads.min(tasks).min((limit / worker).max(1));
        let workspace_bytes = shared + threads * worker;
        Some(Self { method: method(Box::new((c, plan))), threads, workspace_bytes })
    }

    /// Plans `correlations`, or the same work with fewer multiplications: as those `apart`, each of one phase, or
    /// as the one that computes all phases as channels.
    fn correlations<T: Element>(
        kernel: &Kernel<T>,
        pass: Pass,
        correlations: &[Correlation],
        (apart, to_space): (impl FnOnce() -> Vec<Correlation>, Option<Correlation>),
        settings: &Settings,
        threads: usize,
    ) -> Result<Self, Error> {
        let limit = settings.workspace_limit.unwrap_or(usize::MAX);
        let few = correlations.iter().all(|c| c.outputs <= FEW);
        let all = TileSize {
            lanes: kernel.lanes,
            vectors: kernel.vectors,
            channels: kernel.channels,
            bytes: size_of::<T>(),
            even_tiles: kernel.even_tiles,
            packed_rows: kernel.packed_rows,
        };
        let size = TileSize { vectors: if few { MAX_VECTORS } else { kernel.vectors }, ..all };
        // The list of jobs, while it is made from the list of correlations.
        let shared = correlations.len() * (size_of::<Job>() + size_of::<Correlation>());
        let taps = correlations.iter().map(engine::taps_bytes).max().unwrap_or(0);
        let bound = (WORKSPACE_PER_THREAD - RESERVED).saturating_sub(shared);
        let room = limit.saturating_sub(shared).min(bound).saturating_sub(taps);
        let within = |bytes: usize| room.min(bytes.saturating_sub(taps));
        let limits = [within(kernel.panel_bytes), within(kernel.transformed_bytes), room];
        let mut jobs = Vec::with_capacity(correlations.len());
        for c in correlations {
            let Some(strips) = Strips::new(c, size, threads, limits) else {
                let smallest = |c| Strips::smallest(c, size) * size_of::<T>();
                let smallest = correlations.iter().map(smallest).max().unwrap_or(0);
                return Err(Error::WorkspaceLimit {
                    pass,
                    minimum: shared + taps + smallest,
                    limit,
                });
            };
            jobs.push((*c, strips));
        }
        let plain = engine::worker_bytes::<T>(&jobs);
        let mut tasks: usize = jobs.iter().map(|(c, s)| s.tasks(c.groups)).sum();
        let mut shared = shared;
        // The lists must fit as well, beside either plan and even if nothing comes of them.
        let phases: usize = correlations.iter().map(|c| c.phases().len()).sum();
        let lists = winograd::jobs_bytes(phases + usize::from(to_space.is_some()));
        let fit = lists <= room && plain <= limit.saturating_sub(shared + lists);
        let fewer = fewer(settings.algorithm).filter(|_| fit).and_then(|forced| {
            let [_, limits @ ..] = limits.map(|limit| limit.saturating_sub(lists));
            let to_space = to_space.map(|c| (c, all));
            winograd::jobs(&apart(), size, to_space, threads, limits, forced)
        });
        // One after the other runs: what each takes for all threads, and for each.
        let mut takes = vec![(0, plain)];
        if let Some(fewer) = &fewer {
            shared += lists;
            let weights: usize = fewer.iter().map(|(c, _)| space::weights_len(c)).sum();
            let all = weights * size.bytes;
            takes.extend(winograd::takes::<T>(fewer).map(|(kept, each)| (all + kept, each)));
            tasks = tasks.max(fewer.iter().map(|(c, plan)| plan.tasks(c.groups)).sum());
        }
        let affordable = takes.iter().map(|(all, each)| limit.saturating_sub(shared + all) / each);
        let threads = affordable.fold(threads.min(tasks), usize::min).max(1);
        let most = takes.iter().map(|(all, each)| all + threads * each).max();
        let workspace_bytes = shared + most.unwrap_or(0);
        let method = Method::Correlations(fewer, jobs);
        Ok(Self { method, threads, workspace_bytes })
    }

    fn blocks<T: Element>(
        kernel: &Kernel<T>,
        c: Correlation,
        settings: &Settings,
        joined: bool,
        threads: usize,
    ) -> Result<Self, Error> {
        let limit = settings.workspace_limit.unwrap_or(usize::MAX);
        if c.channels == 0 || c.outputs == 0 || c.batch == 0 {
            return Ok(Self { method: Method::Zeros, threads: 1, workspace_bytes: 0 });
        }
        let plan = size_of::<(Correlation, Option<winograd::Blocks>, Plain)>();
        let held = plan + Division::MOST_SHARED_BYTES;
        let each = limit.saturating_sub(held).min(WORKSPACE_PER_THREAD - RESERVED);
        let Some(plain) = Plain::new(&c, kernel, each, joined) else {
            let minimum = held + Plain::smallest(&c, kernel, joined);
            return Err(Error::WorkspaceLimit { pass: Pass::WeightGradient, minimum, limit });
        };
        let fewer = fewer(settings.algorithm)
            .and_then(|forced| winograd::Blocks::new(&c, kernel, each, &plain, forced));
        let mut worker = plain.worker_bytes::<T>();
        let mut lists = plain.division().shared_bytes();
        let mut tasks = plain.division().tasks();
        if let Some(fewer) = &fewer {
            worker = worker.max(fewer.worker_bytes::<T>(&c));
            lists = lists.max(fewer.division.shared_bytes());
            // The plain one, should it run instead, makes do with as many threads.
            tasks = fewer.division.tasks();
        }
        let shared = plan + lists;
        let affordable = (limit.saturating_sub(shared) / worker).max(1);
        let threads = threads.min(tasks).min(affordable);
        let workspace_bytes = shared + threads * worker;
        Ok(Self { method: Method::Blocks(Box::new((c, fewer, plain))), threads, workspace_bytes })
    }

    /// The algorithm that runs.
    pub fn algorithm(&self) -> Algorithm {
        let fewer = match &self.method {
            Method::Correlations(fewer, _) => fewer.is_some(),
            Method::Blocks(plan) => plan.1.is_some(),
            Method::Direct(_)
            | Method::Stream(_)
            | Method::Patches(_)
            | Method::Planes
            | Method::Staged(_)
            | Method::Zeros => false,
        };
        if fewer { Algorithm::Winograd } else { Algorithm::Strip }
    }

    /// The pieces as a reader of the plan sees them.
    pub fn pieces(&self) -> Vec<Piece> {
        match &self.method {
            Method::Correlations(Some(jobs), _) => jobs.iter().map(|(c, p)| p.piece(c)).collect(),
            Method::Correlations(None, jobs) => jobs.iter().map(|(c, p)| p.piece(c)).collect(),
            Method::Blocks(plan) => {
                let (c, fewer, plain) = &**plan;
                vec![fewer.map_or_else(|| plain.piece(c), |fewer| fewer.piece(c))]
            }
            Method::Direct(jobs) => jobs.iter().map(|(c, p)| p.piece(c)).collect(),
            Method::Stream(plan) => vec![plan.1.piece(&plan.0)],
            Method::Patches(plan) => vec![plan.1.piece(&plan.0)],
            Method::Planes | Method::Staged(_) | Method::Zeros => Vec::new(),
        }
    }
}

/// Whether fewer multiplications are wanted: `Some(true)` wherever they can be, `Some(false)` where they are
/// sooner.
fn fewer(algorithm: Algorithm) -> Option<bool> {
    match algorithm {
        Algorithm::Auto => Some(false),
        Algorithm::Winograd => Some(true),
        Algorithm::Strip | Algorithm::Paper => None,
    }
}

/// The strides of row-major data of `shape`.
fn row_major([_, c, h, w]: [usize; 4]) -> [usize; 4] {
    [c * h * w, h * w, w, 1]
}

/// See [`crate::forward`]; the views and the bias have the shapes of the geometry.
pub(crate) fn forward<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    settings: &Settings,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<Vec<T>, Error> {
    let layout = Layout::of(x).with_weights(weight);
    let work = Work::new(kernel, g, Pass::Forward, settings, layout)?;
    let bias = bias.map_or(std::ptr::null(), <[T]>::as_ptr);
    // SAFETY: the caller vouches for the shapes, from which the work is derived.
    Ok(unsafe { correlate(kernel, g, false, &work, x, weight, bias) })
}

/// See [`crate::input_gradient`]; the views have the shapes of the geometry.
pub(crate) fn input_gradient<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    settings: &Settings,
    dy: &View<T>,
    weight: &View<T>,
) -> Result<Vec<T>, Error> {
    let work = Work::new(kernel, g, Pass::InputGradient, settings, Layout::of(dy))?;
    // SAFETY: the caller vouches for the shapes, from which the work is derived.
    Ok(unsafe { correlate(kernel, g, true, &work, dy, weight, std::ptr::null()) })
}

/// Runs the correlations of the forward pass or, with `gradient`, of the input gradient.
///
/// # Safety
///
/// `work` is that pass's for `g` and for tensors that lie like `x`; `x` and `weight` have the shapes
/// of `g`, and a bias that is not null a value for every output channel.
unsafe fn correlate<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    gradient: bool,
    work: &Work,
    x: &View<T>,
    weight: &View<T>,
    bias: *const T,
) -> Vec<T> {
    let shape = if gradient { g.input_shape() } else { g.output_shape() };
    let [output, channel, row, column] = weight.strides();
    let group = (g.channels_out / g.groups) as isize * output;
    let [computed, summed] = if gradient { [channel, output] } else { [output, channel] };
    let mut y = Fresh::new(shape.iter().product());
    let operands = Operands {
        x: x.as_ptr(),
        x_strides: x.strides(),
        weight: weight.as_ptr(),
        weight_strides: [group, computed, summed, row, column],
        bias,
        y: y.as_mut_ptr(),
        y_strides: row_major(shape),
    };
    // SAFETY: the caller vouches for the tensors; the correlations of a pass, or its planes,
    // together write every position once.
    unsafe {
        match &work.method {
            Method::Correlations(fewer, jobs) => {
                let run = |jobs: &Vec<winograd::Job>| {
                    let run = |operands| winograd::run(kernel, jobs, operands, work.threads);
                    match jobs[..] {
                        [(c, _)] if c.space.is_some() => {
                            let weights = space::weights(g, &c, weight, work.threads);
                            let weight_strides = space::weight_strides(&c);
                            run(&Operands { weight: weights.as_ptr(), weight_strides, ..operands })
                        }
                        _ => run(&operands),
                    }
                };
                if !fewer.as_ref().is_some_and(run) {
                    engine::run(kernel, jobs, &operands, work.threads);
                }
            }
            Method::Direct(jobs) => direct::run(kernel, jobs, &operands, work.threads),
            Method::Patches(plan) => plan.1.run(kernel, &plan.0, &operands, work.threads),
            Method::Stream(plan) => plan.1.run(kernel, &plan.0, &operands, work.threads),
            Method::Staged(jobs) => {
                stage::run(kernel, jobs, &operands, work.threads);
            }
            _ => depthwise::run(kernel, g, gradient, &operands, work.threads),
        }
        y.finish()
    }
}

/// See [`crate::weight_gradient`] and [`crate::weight_bias_gradient`]; the views have the shapes of
/// the geometry.
pub(crate) fn weight_gradient<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    settings: &Settings,
    x: &View<T>,
    dy: &View<T>,
    bias: bool,
) -> Result<(Vec<T>, Option<Vec<T>>), Error> {
    let layout = Layout::of(x).and(Layout::of(dy));
    let work = Work::new(kernel, g, Pass::WeightGradient, settings, layout)?;
    let len = g.weight_shape().iter().product();
    let mut dw = Fresh::new(len);
    let mut db = Fresh::new(if bias { g.channels_out } else { 0 });
    let operands = weight_gradient::Operands {
        x: x.as_ptr(),
        x_strides: x.strides(),
        dy: dy.as_ptr(),
        dy_strides: dy.strides(),
        dw: dw.as_mut_ptr(),
        db: if bias { db.as_mut_ptr() } else { std::ptr::null_mut() },
    };
    // SAFETY: the views have the shapes of the geometry, from which the work is derived; blocks or
    // planes together write both results.
    unsafe {
        match &work.method {
            Method::Zeros => {
                let db = bias.then(|| bias_gradient(kernel, g, dy));
                return Ok((vec![T::ZERO; len], db));
            }
            Method::Blocks(plan) => {
                let (c, fewer, plain) = &**plan;
                let run = |fewer: &winograd::Blocks| {
                    winograd::run_weight_gradient(kernel, c, fewer, &operands, work.threads)
                };
                if !fewer.as_ref().is_some_and(run) {
                    plain.run(kernel, c, &operands, work.threads);
                }
            }
            Method::Staged(jobs) => {
                depthwise::weight_gradient(kernel, g, jobs.first(), &operands, work.threads);
            }
            _ => depthwise::weight_gradient(kernel, g, None, &operands, work.threads),
        }
        Ok((dw.finish(), bias.then(|| db.finish())))
    }
}

/// See [`crate::bias_gradient`]; the view has the shape of the geometry's output.
pub(crate) fn bias_gradient<T: Element>(kernel: &Kernel<T>, g: &Geometry, dy: &View<T>) -> Vec<T> {
    let mut db = Fresh::new(g.channels_out);
    // SAFETY: the view is checked, and every channel is written.
    unsafe {
        bias_gradient::run(kernel, dy, db.as_mut_ptr(), rayon::current_num_threads());
        db.finish()
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{Layout as Lying, Strided, problems};

    /// Calls `check` with every kernel this CPU has, the portable one included, on the whole suite: with the geometry, the
    /// input, the weight and the gradient of the output, and what to call it. The public functions only ever run the
    /// fastest kernel.
    fn on_every_kernel<T: Element + From<i8>>(
        mut check: impl FnMut(&Kernel<T>, &Geometry, [&View<T>; 3], &str),
    ) {
        for kernel in Kernel::<T>::available() {
            for problem in problems() {
                let g = problem.geometry();
                let of = |values: Vec<T>, shape| {
                    Strided::new(&values, shape, Lying::Contiguous, T::ZERO)
                };
                let x = of(problem.x(), problem.input);
                let weight = of(problem.weights(), problem.weight);
                let dy = of(problem.dy(), g.output_shape());
                let at = format!("{}: {problem:?}", kernel.name);
                check(kernel, &g, [&x.view(), &weight.view(), &dy.view()], &at);
            }
        }
    }

    #[test]
    fn every_kernel_gives_the_reference() {
        fn check<T: Element + From<i8>>() {
            on_every_kernel::<T>(|kernel, g, [x, weight, dy], at| {
                for algorithm in [Algorithm::Strip, Algorithm::Winograd] {
                    let settings = Settings { algorithm, ..Settings::default() };
                    let y = forward(kernel, g, &settings, x, weight, None).unwrap();
                    assert_eq!(y, reference::forward(g, x, weight, None), "{at}");
                    let dx = input_gradient(kernel, g, &settings, dy, weight).unwrap();
                    assert_eq!(dx, reference::input_gradient(g, dy, weight), "{at}");
                    let (dw, db) = weight_gradient(kernel, g, &settings, x, dy, true).unwrap();
                    assert_eq!(dw, reference::weight_gradient(g, x, dy), "{at}");
                    assert_eq!(db.unwrap(), reference::bias_gradient(g, dy), "{at}");
                }
            });
        }
        check::<f32>();
        check::<f64>();
    }

    /// Problems of a test are too small for plans to keep transformed weights: here they do.
    #[test]
    fn kept_weights_give_the_reference() {
        fn check<T: Element + From<i8>>() {
            let settings = Settings { algorithm: Algorithm::Winograd, ..Settings::default() };
            let mut kept = [0; 2];
            on_every_kernel::<T>(|kernel, g, [x, weight, dy], at| {
                let mut run = |pass, input: &View<T>| {
                    let layout = Layout::of(input);
                    let mut work = Work::new(kernel, g, pass, &settings, layout).unwrap();
                    let Method::Correlations(Some(jobs), _) = &mut work.method else {
                        return None;
                    };
                    jobs.iter_mut().for_each(|(c, plan)| plan.keep(c));
                    let gradient = pass == Pass::InputGradient;
                    kept[usize::from(gradient)] += 1;
                    let bias = std::ptr::null();
                    // SAFETY: the shapes are those of the geometry.
                    Some(unsafe { correlate(kernel, g, gradient, &work, input, weight, bias) })
                };
                if let Some(y) = run(Pass::Forward, x) {
                    assert_eq!(y, reference::forward(g, x, weight, None), "{at}");
                }
                if let Some(dx) = run(Pass::InputGradient, dy) {
                    assert_eq!(dx, reference::input_gradient(g, dy, weight), "{at}");
                }
            });
            assert!(kept.into_iter().all(|kept| kept > 10), "{kept:?}");
        }
        check::<f32>();
        check::<f64>();
    }
}
