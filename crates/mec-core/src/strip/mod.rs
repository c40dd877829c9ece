//! `Algorithm::Strip`: MEC whose lowered matrix exists one packed panel at a time.

mod buffer;
mod correlation;
mod depthwise;
mod engine;
mod panel;
mod strips;
mod weight_gradient;

use crate::kernel::Kernel;
use crate::{Element, Error, Geometry, Pass, Settings, View, WORKSPACE_PER_THREAD};
use buffer::Fresh;
use correlation::Correlation;
use engine::{Job, Operands};
use strips::{Strips, TileSize};
use weight_gradient::Blocks;

/// What the thread pool and the list of jobs may take of a thread's bound.
const RESERVED: usize = 16 << 10;

/// The jobs of a pass, the threads to run them on, and the bytes they take.
pub(crate) struct Jobs {
    pub jobs: Vec<Job>,
    pub threads: usize,
    pub workspace_bytes: usize,
}

/// Plans correlations within the limit.
fn plan<T: Element>(
    kernel: &Kernel<T>,
    pass: Pass,
    correlations: impl Iterator<Item = Correlation>,
    settings: &Settings,
) -> Result<Jobs, Error> {
    let size = TileSize {
        lanes: kernel.lanes,
        vectors: kernel.columns() / kernel.lanes,
        channels: kernel.channels,
        bytes: size_of::<T>(),
    };
    let threads = rayon::current_num_threads();
    let correlations: Vec<_> = correlations.collect();
    let fixed = correlations.capacity() * size_of::<Correlation>()
        + correlations.len() * size_of::<Job>();
    let limit = settings.workspace_limit.unwrap_or(usize::MAX);
    let each = limit.saturating_sub(fixed).min(WORKSPACE_PER_THREAD - RESERVED);
    let jobs: Option<Vec<Job>> = correlations
        .iter()
        .map(|c| Some((*c, Strips::new(c, size, threads, each)?)))
        .collect();
    let Some(jobs) = jobs else {
        let panel = |c: &Correlation| Strips::smallest(c, size) * size_of::<T>();
        let minimum = fixed + correlations.iter().map(panel).max().unwrap_or(0);
        return Err(Error::WorkspaceLimit { pass, minimum, limit });
    };
    let worker = engine::worker_bytes::<T>(&jobs);
    let tasks: usize = jobs.iter().map(|(c, s)| s.tasks(c.groups)).sum();
    let affordable = (limit - fixed).checked_div(worker).unwrap_or(1);
    let threads = threads.min(tasks).min(affordable);
    if std::env::var("DBG").is_ok() { for j in &jobs { eprintln!("{:?}", j.1); } std::process::exit(0) }
    Ok(Jobs { jobs, threads, workspace_bytes: fixed + threads * worker })
}

/// The strides of row-major data of `shape`.
fn row_major([_, c, h, w]: [usize; 4]) -> [usize; 4] {
    [c * h * w, h * w, w, 1]
}

/// The rows of each plane follow each other without a gap.
fn rows_join<T>(view: &View<T>) -> bool {
    let (shape, strides) = (view.shape(), view.strides());
    strides[2] == shape[3] as isize * strides[3]
}

/// See [`crate::forward`].
pub(crate) fn forward<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    settings: &Settings,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Result<Vec<T>, Error> {
    let shape = g.output_shape();
    let correlation = Correlation::forward(g, rows_join(x));
    let plan = plan(kernel, Pass::Forward, [correlation].into_iter(), settings)?;
    let mut y = Fresh::new(shape.iter().product());
    let [output, channel, row, column] = weight.strides();
    let operands = Operands {
        x: x.as_ptr(),
        x_strides: x.strides(),
        weight: weight.as_ptr(),
        weight_strides: [
            (g.channels_out / g.groups) as isize * output,
            output,
            channel,
            row,
            column,
        ],
        bias: bias.map_or(std::ptr::null(), <[T]>::as_ptr),
        y: y.as_mut_ptr(),
        y_strides: row_major(shape),
    };
    // SAFETY: the views and the bias have the shapes of the geometry, from which the correlation
    // is derived; it computes every output position once.
    unsafe {
        if depthwise::applies(g) && x.strides()[3] == 1 {
            depthwise::run(kernel, g, false, &operands, rayon::current_num_threads());
            return Ok(y.finish());
        }
        engine::run(kernel, &plan.jobs, &operands, plan.threads);
        Ok(y.finish())
    }
}

/// See [`crate::input_gradient`].
pub(crate) fn input_gradient<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    settings: &Settings,
    dy: &View<T>,
    weight: &View<T>,
) -> Result<Vec<T>, Error> {
    let shape = g.input_shape();
    let correlations = Correlation::input_gradient(g, rows_join(dy));
    let plan = plan(kernel, Pass::InputGradient, correlations, settings)?;
    let mut dx = Fresh::new(shape.iter().product());
    let [output, channel, row, column] = weight.strides();
    let operands = Operands {
        x: dy.as_ptr(),
        x_strides: dy.strides(),
        weight: weight.as_ptr(),
        weight_strides: [
            (g.channels_out / g.groups) as isize * output,
            channel,
            output,
            row,
            column,
        ],
        bias: std::ptr::null(),
        y: dx.as_mut_ptr(),
        y_strides: row_major(shape),
    };
    // SAFETY: the views have the shapes of the geometry, from which the correlations are derived;
    // together they compute every input position once.
    unsafe {
        if depthwise::applies(g) && dy.strides()[3] == 1 {
            depthwise::run(kernel, g, true, &operands, rayon::current_num_threads());
            return Ok(dx.finish());
        }
        engine::run(kernel, &plan.jobs, &operands, plan.threads);
        Ok(dx.finish())
    }
}

/// See [`crate::weight_gradient`] and [`crate::weight_bias_gradient`].
pub(crate) fn weight_gradient<T: Element>(
    kernel: &Kernel<T>,
    g: &Geometry,
    settings: &Settings,
    x: &View<T>,
    dy: &View<T>,
    bias: bool,
) -> Result<(Vec<T>, Option<Vec<T>>), Error> {
    let len = g.weight_shape().iter().product();
    let c = Correlation::forward(g, rows_join(x) && rows_join(dy));
    if len == 0 || c.batch == 0 {
        return Ok((vec![T::ZERO; len], bias.then(|| bias_gradient(g, dy))));
    }
    let pass = Pass::WeightGradient;
    let limit = settings.workspace_limit.unwrap_or(usize::MAX);
    let threads = rayon::current_num_threads();
    let each = limit.min(WORKSPACE_PER_THREAD - RESERVED);
    let Some(blocks) = Blocks::new(&c, kernel, each) else {
        let minimum = Blocks::smallest::<T>(&c, kernel.lanes);
        return Err(Error::WorkspaceLimit { pass, minimum, limit });
    };
    let worker = blocks.worker_bytes::<T>();
    let threads = threads.min(blocks.blocks(&c) * blocks.parts).min(limit / worker);
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
    // SAFETY: the views have the shapes of the geometry, from which the correlation is derived;
    // part 0 of each block writes its share of both results.
    unsafe {
        if depthwise::applies(g) && x.strides()[3] == 1 && dy.strides()[3] == 1 {
            depthwise::weight_gradient(kernel, g, &operands, rayon::current_num_threads());
            return Ok((dw.finish(), bias.then(|| db.finish())));
        }
        weight_gradient::run(kernel, &c, &blocks, &operands, threads);
        Ok((dw.finish(), bias.then(|| db.finish())))
    }
}

/// See [`crate::bias_gradient`].
pub(crate) fn bias_gradient<T: Element>(g: &Geometry, dy: &View<T>) -> Vec<T> {
    crate::reference::bias_gradient(g, dy)
}
