//! What a pass will do and take, as plain data.

use crate::kernel::Kernel;
use crate::strip::{Layout, Work};
use crate::{Algorithm, Element, Error, Footprint, Geometry, Pass, Settings, paper};

/// How one pass of a convolution will run: made without running it, and followed when it runs.
///
/// A plan is for contiguous tensors and for as many threads as the current rayon pool has; tensors that
/// lie otherwise may take another amount, within the same bound. What decides the order of a sum does not
/// depend on the threads.
///
/// ```
/// use mec_core::{ConvOptions, Geometry, Pass, Plan, Settings, WORKSPACE_PER_THREAD};
/// // The paper's layer cv9 at batch 128, on whose L the paper's algorithm would spend 283 MiB.
/// let geometry = Geometry::new([128, 64, 56, 56], [64, 64, 3, 3], &ConvOptions::default())?;
/// let plan = Plan::new::<f32>(&geometry, Pass::Forward, &Settings::default())?;
/// assert!(plan.workspace_bytes <= plan.threads * WORKSPACE_PER_THREAD);
/// assert_eq!(plan.lowered_bytes() >> 20, 283);
/// # Ok::<(), mec_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The problem.
    pub geometry: Geometry,
    /// Which computation.
    pub pass: Pass,
    /// The algorithm that runs: never [`Algorithm::Auto`].
    pub algorithm: Algorithm,
    /// Most threads that take part.
    pub threads: usize,
    /// Most bytes held beside inputs and results, over all threads.
    pub workspace_bytes: usize,
    /// Floating-point operations: two for each multiply-add, padding counted.
    pub flops: u128,
    /// What the lowered matrices of the literature would take, in elements.
    pub footprint: Footprint,
    /// Bytes of an element.
    pub element_bytes: usize,
    /// The pieces the pass falls apart into: one, but for the input gradient at a stride.
    pub pieces: Vec<Piece>,
}

/// One correlation of a pass, cut into strips, bands and panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Remainder of the output rows it computes when divided by the stride; 0 but in the input
    /// gradient, whose output is the input's gradient.
    pub row_phase: usize,
    /// How many are computed together, from this one on.
    pub row_phases: usize,
    /// Remainders of the columns that are computed together, from this one on.
    pub column_phase: usize,
    /// How many of them.
    pub column_phases: usize,
    /// Output rows and columns of each phase: of the first, where some have fewer.
    pub output: [usize; 2],
    /// Bands an image is divided into: 1 is the paper's algorithm, the output's height is im2col.
    pub bands: usize,
    /// Strips of columns, over all images and bands.
    pub strips: usize,
    /// Output rows that one panel serves: 0 where there is none.
    pub panel_rows: usize,
    /// Channels of a group that one panel holds.
    pub panel_channels: usize,
    /// Copies of each input element in a panel: the kernel's width in the paper, 1 at best, 0 without a panel.
    pub planes: usize,
    /// Independent tasks.
    pub tasks: usize,
}

impl Plan {
    /// Plans `pass` for elements of type `T`.
    ///
    /// # Errors
    ///
    /// [`Error::WorkspaceLimit`] where the limit cannot be kept; [`Error::TooLarge`] where the
    /// paper's L exceeds the address space.
    pub fn new<T: Element>(
        geometry: &Geometry,
        pass: Pass,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let footprint = Footprint::of(geometry);
        let mut plan = Self {
            geometry: *geometry,
            pass,
            algorithm: Algorithm::Strip,
            threads: 1,
            workspace_bytes: 0,
            flops: geometry.flops(),
            footprint,
            element_bytes: size_of::<T>(),
            pieces: Vec::new(),
        };
        if uses_paper(pass, settings) {
            plan.algorithm = Algorithm::Paper;
            plan.workspace_bytes = paper_workspace::<T>(geometry, settings)?;
            return Ok(plan);
        }
        let kernel = Kernel::<T>::best();
        let work = Work::new(kernel, geometry, pass, settings, Layout::CONTIGUOUS)?;
        plan.algorithm = work.algorithm();
        plan.threads = work.threads;
        plan.workspace_bytes = work.workspace_bytes;
        plan.pieces = work.pieces();
        Ok(plan)
    }

    /// Bytes of the im2col matrix of the whole batch.
    pub fn im2col_bytes(&self) -> u128 {
        self.footprint.im2col * self.element_bytes as u128
    }

    /// Bytes of the paper's lowered matrix L of the whole batch.
    pub fn lowered_bytes(&self) -> u128 {
        self.footprint.lowered * self.element_bytes as u128
    }

    /// Bytes that the paper's algorithm saves over im2col ([`Footprint::saving`]).
    pub fn saved_bytes(&self) -> i128 {
        self.footprint.saving() * self.element_bytes as i128
    }
}

/// Whether the paper's algorithm runs: it is asked for, and has this pass.
pub(crate) fn uses_paper(pass: Pass, settings: &Settings) -> bool {
    settings.algorithm == Algorithm::Paper && pass == Pass::Forward
}

/// Bytes the paper's algorithm takes, if the limit allows it.
pub(crate) fn paper_workspace<T>(geometry: &Geometry, settings: &Settings) -> Result<usize, Error> {
    let minimum = paper::workspace_bytes(geometry, None, size_of::<T>());
    match settings.workspace_limit {
        Some(limit) if limit < minimum => {
            Err(Error::WorkspaceLimit { pass: Pass::Forward, minimum, limit })
        }
        _ => Ok(minimum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConvOptions, WORKSPACE_PER_THREAD};

    fn plan(input: [usize; 4], weight: [usize; 4], stride: usize, pass: Pass) -> Plan {
        plan_by(Algorithm::Auto, input, weight, stride, pass)
    }

    fn plan_by(
        algorithm: Algorithm,
        input: [usize; 4],
        weight: [usize; 4],
        stride: usize,
        pass: Pass,
    ) -> Plan {
        let options = ConvOptions { stride: [stride; 2], ..ConvOptions::default() };
        let geometry = Geometry::new(input, weight, &options).unwrap();
        let settings = Settings { algorithm, workspace_limit: None };
        Plan::new::<f32>(&geometry, pass, &settings).unwrap()
    }

    #[test]
    fn workspace_does_not_grow_with_the_batch() {
        for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
            for batch in [1, 32, 1024] {
                let plan = plan([batch, 64, 56, 56], [64, 64, 3, 3], 1, pass);
                assert!(plan.workspace_bytes <= plan.threads * WORKSPACE_PER_THREAD, "{plan:?}");
            }
        }
    }

    #[test]
    fn the_input_gradient_has_a_piece_for_each_row_phase() {
        let first_layer = |algorithm| {
            plan_by(algorithm, [1, 3, 227, 227], [96, 3, 11, 11], 4, Pass::InputGradient)
        };
        let strided = first_layer(Algorithm::Strip);
        assert_eq!(strided.pieces.len(), 4);
        assert!(strided.pieces.iter().all(|p| p.column_phases == 4));
        assert_eq!(strided.pieces.iter().map(|p| p.output[0]).sum::<usize>(), 227);
        let [to_space] = first_layer(Algorithm::Auto).pieces[..] else {
            panic!("one for all phases")
        };
        assert_eq!([to_space.row_phases, to_space.column_phases], [4, 4]);
        assert_eq!(to_space.output, [57, 57]);
        let wide = plan([1, 3, 60, 60], [8, 3, 6, 6], 6, Pass::InputGradient);
        assert_eq!(wide.pieces.len(), 36);
        assert_eq!(plan([1, 3, 9, 9], [8, 3, 3, 3], 1, Pass::InputGradient).pieces.len(), 1);
    }

    #[test]
    fn pointwise_layers_forget_their_rows() {
        let odd = plan([4, 16, 15, 15], [32, 16, 1, 1], 1, Pass::Forward);
        let [rows, rest] = odd.pieces[..] else { panic!("rows and a rest: {odd:?}") };
        let [height, width] = rows.output;
        assert_eq!([height, width], [15 * 15 / width, width], "{odd:?}");
        assert_eq!(rest.output, [1, 15 * 15 % width], "{odd:?}");
        // The input gradient of many images likewise; of few positions it is one row.
        let gradient = |shape| plan(shape, [32, 16, 1, 1], 1, Pass::InputGradient);
        let many = gradient([40, 16, 15, 15]).pieces;
        assert_eq!(
            many.iter().map(|piece| piece.output).collect::<Vec<_>>(),
            [rows.output, rest.output]
        );
        let few = gradient([1, 16, 5, 5]).pieces;
        assert_eq!((few.len(), few[0].output), (1, [1, 5 * 5]));
        let even = plan([4, 16, 48, 48], [32, 16, 1, 1], 1, Pass::Forward).pieces[0];
        assert_eq!(even.output[0] * even.output[1], 48 * 48);
        assert!(even.output[1] < 49 && even.planes == 1, "{even:?}");
    }

    #[test]
    fn bands_fill_the_registers_of_small_images() {
        let plan = plan([1, 512, 7, 7], [512, 512, 3, 3], 1, Pass::Forward);
        assert!(plan.pieces[0].bands > 1, "{plan:?}");
    }

    #[test]
    fn the_papers_quantities_are_in_bytes_of_the_element() {
        let options = ConvOptions::default();
        let geometry = Geometry::new([1, 1, 7, 7], [1, 1, 3, 3], &options).unwrap();
        let of = Plan::new::<f64>(&geometry, Pass::Forward, &Settings::default()).unwrap();
        assert_eq!((of.im2col_bytes(), of.lowered_bytes()), (25 * 9 * 8, 5 * 21 * 8));
        assert_eq!((of.saved_bytes(), of.flops), (120 * 8, 2 * 25 * 9));
    }

    #[test]
    fn a_limit_is_kept_or_refused() {
        for (input, weight, stride, groups) in [
            ([8, 64, 56, 56], [64, 64, 3, 3], 1, 1),
            ([8, 32, 28, 28], [32, 32, 3, 3], 2, 1),
            ([8, 3, 57, 57], [48, 3, 11, 11], 4, 1),
            ([8, 3, 32, 32], [64, 3, 3, 3], 1, 1),
            ([8, 64, 28, 28], [256, 64, 1, 1], 1, 1),
            ([8, 32, 28, 28], [32, 1, 4, 4], 2, 32),
        ] {
            let options = ConvOptions { stride: [stride; 2], groups, ..ConvOptions::default() };
            let geometry = Geometry::new(input, weight, &options).unwrap();
            for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                let with = |limit| {
                    let settings = Settings { workspace_limit: Some(limit), ..Settings::default() };
                    Plan::new::<f32>(&geometry, pass, &settings)
                };
                let at = format!("{pass} of {geometry:?}");
                let Err(Error::WorkspaceLimit { minimum, .. }) = with(0) else {
                    panic!("{at} without any workspace")
                };
                assert!(with(minimum - 1).is_err(), "{at}");
                // Every kind of plan, with and without fewer multiplications, lies in between.
                for limit in (minimum..700_000).step_by(997) {
                    let taken = with(limit).unwrap().workspace_bytes;
                    assert!(taken <= limit, "{at}: {taken} of {limit}");
                }
            }
        }
    }

    #[test]
    fn the_paper_has_no_gradients_of_its_own() {
        let options = ConvOptions::default();
        let geometry = Geometry::new([1, 64, 56, 56], [64, 64, 3, 3], &options).unwrap();
        let settings = Settings { algorithm: Algorithm::Paper, ..Settings::default() };
        let of = |pass| Plan::new::<f32>(&geometry, pass, &settings).unwrap();
        assert_eq!(of(Pass::Forward).algorithm, Algorithm::Paper);
        assert!(
            of(Pass::Forward).workspace_bytes as u128 >= of(Pass::Forward).footprint.lowered * 4
        );
        assert_eq!(of(Pass::InputGradient).algorithm, Algorithm::Strip);
    }
}
