//! How a problem is cut into tiles: chosen from the problem and the device, without trial runs.
//!
//! Tiles are few sizes, so all of them are tried on a model: the multiply-adds of a unit, what it reads
//! for them, what it stages, and how often it waits, times how many rounds of cubes the device needs.

use mec_core::{Geometry, Reach};

use super::correlation;
use super::device::{Costs, Device, Work};
use super::staging::Patch;
use super::weight_gradient;

/// A pass as the kernels see it: correlations along two axes, of one group's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub batch: usize,
    pub groups: usize,
    /// Channels of the input, for each group.
    pub channels: usize,
    /// Channels of the output, for each group.
    pub outputs: usize,
    pub height: Reach,
    pub width: Reach,
    /// Whether neighbouring channels of the input are neighbours in memory.
    pub channels_last: bool,
    /// Bytes of an element.
    pub element_bytes: usize,
}

impl Problem {
    pub fn forward(g: &Geometry, channels_last: bool, element_bytes: usize) -> Self {
        Self {
            batch: g.batch,
            groups: g.groups,
            channels: g.channels_in / g.groups,
            outputs: g.channels_out / g.groups,
            height: Reach::forward(&g.height),
            width: Reach::forward(&g.width),
            channels_last,
            element_bytes,
        }
    }

    /// The input positions that leave the remainders `phase` when divided by the strides.
    pub fn input_gradient(
        g: &Geometry,
        phase: [usize; 2],
        channels_last: bool,
        element_bytes: usize,
    ) -> Self {
        let mut problem = Self {
            batch: g.batch,
            groups: g.groups,
            channels: g.channels_out / g.groups,
            outputs: g.channels_in / g.groups,
            height: Reach::phase(&g.height, phase[0]),
            width: Reach::phase(&g.width, phase[1]),
            channels_last,
            element_bytes,
        };
        if problem.height.taps == 0 || problem.width.taps == 0 {
            // Nothing to sum: one tap over no channels stores the zeros.
            problem.channels = 0;
            problem.height.taps = 1;
            problem.width.taps = 1;
        }
        problem
    }

    /// Lanes of a vector of `count` channels: three are padded to four, since a vector is read in
    /// about the time of one number.
    fn lanes(count: usize) -> usize {
        match count {
            0 | 1 => 1,
            2 => 2,
            _ => 4,
        }
    }

    fn axes(&self) -> [&Reach; 2] {
        [&self.height, &self.width]
    }

    fn patch(
        &self,
        tile: [usize; 3],
        taps: [usize; 2],
        shared: bool,
        vectors: usize,
        units: usize,
        device: &Device,
    ) -> Patch {
        Patch {
            tile,
            step: self.axes().map(|axis| axis.step),
            tap_step: self.axes().map(|axis| axis.tap_step),
            taps,
            shared,
            vectors,
            lanes: Self::lanes(self.channels),
            channels_last: self.channels_last,
            units,
            batch: device.costs().batch,
        }
    }

    /// How many vectors of channels may be staged together: 1, 2, 4 and so on, up to all or to `most`.
    fn staged_vectors(&self, most: usize) -> impl Iterator<Item = usize> {
        let all = self.channels.div_ceil(Self::lanes(self.channels));
        std::iter::successors(Some(1), |vectors| Some(vectors * 2))
            .take_while(move |&vectors| vectors <= most && (vectors == 1 || vectors <= all))
    }

    /// What staging a vector of `lanes` of the input costs.
    fn stage_cost(&self, costs: &Costs, lanes: usize) -> f64 {
        let single =
            if self.channels_last && self.channels.is_multiple_of(lanes) { 1 } else { lanes };
        costs.stage + costs.stage_lane * single as f64
    }

    /// Shapes of at most `positions` output positions, and how many of each there are: rows and
    /// columns divided evenly, and several images where one does not fill a tile.
    fn shapes(&self, positions: usize) -> impl Iterator<Item = [usize; 3]> {
        let (rows, columns) = (self.height.output.max(1), self.width.output.max(1));
        let widths = (1..=8usize)
            .map(move |parts| columns.div_ceil(parts))
            .chain([4, 8, 16, 32].map(|width| width.min(columns)));
        let batch = self.batch;
        widths.filter(move |&width| width <= positions).map(move |width| {
            let most = (positions / width).min(rows);
            let height = rows.div_ceil(rows.div_ceil(most));
            let whole = width == columns && height == rows;
            let images =
                if whole { (positions / (width * height)).clamp(1, batch.max(1)) } else { 1 };
            [images, height, width]
        })
    }

    /// Runs that a row of `columns` is cut into, how many taps of a row a run meets at once, and whether
    /// the taps share a patch.
    fn runs(&self, columns: usize) -> impl Iterator<Item = (usize, usize, bool)> {
        let (taps, taps_w) = (self.height.taps * self.width.taps, self.width.taps);
        let runs = (1..=8).map(move |parts| columns.div_ceil(parts)).chain([1, 2, 4, 8]);
        let windows = [(1, false), (1, true), (taps_w, true)];
        runs.flat_map(move |run| windows.map(|(window, shared)| (run, window, shared)))
            .filter(move |&(run, window, shared)| (!shared || taps > 1) && (window == 1 || run > 1))
    }

    /// Divisions of a cube's units, along rows of the sums and along output channels, and vectors of
    /// output channels for each unit, of which at most one a unit is wasted.
    fn divisions(&self, device: &Device) -> impl Iterator<Item = ([usize; 2], usize)> {
        let (outputs, lanes_out) = (self.outputs, Self::lanes(self.outputs));
        let most = device.max_units.min(256);
        let along_channels = UNITS[..5].iter().flat_map(|&n| [1, 2, 4].map(|vectors| (n, vectors)));
        along_channels
            .filter(move |&(n, vectors)| {
                n * vectors * lanes_out < outputs + n * lanes_out || (n, vectors) == (1, 1)
            })
            .flat_map(|(n, vectors)| UNITS.map(|m| ([m, n], vectors)))
            .filter(move |([m, n], _)| (8..=most).contains(&(m * n)))
    }

    /// Tiles along images, rows and columns.
    pub fn tiles(&self, tile: [usize; 3]) -> [usize; 3] {
        [
            self.batch.div_ceil(tile[0]),
            self.height.output.div_ceil(tile[1]),
            self.width.output.div_ceil(tile[2]),
        ]
    }
}

/// Divisions of a cube's units that are tried: along rows of the sums, along columns.
const UNITS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The tile of the forward pass, or of one phase of the input gradient.
///
/// `None` if the device has not the shared memory for the smallest.
pub(super) fn correlation_tile(
    problem: &Problem,
    transposed: bool,
    device: &Device,
) -> Option<correlation::Tile> {
    let costs = device.costs();
    let lanes = Problem::lanes(problem.channels);
    let lanes_out = Problem::lanes(problem.outputs);
    let kernel = [problem.height.taps, problem.width.taps];
    let taps = kernel[0] * kernel[1];
    let budget = device.shared_bytes / problem.element_bytes;
    let mut best: Option<(f64, correlation::Tile)> = None;

    for (units, unit_vectors) in problem.divisions(device) {
        let blocks = problem.outputs.div_ceil(units[1] * unit_vectors * lanes_out).max(1);
        for unit_positions in [1, 2, 4, 8, 16, 32, 64] {
            if unit_positions * unit_vectors * lanes_out > costs.sums {
                continue;
            }
            for shape in problem.shapes(units[0] * unit_positions) {
                for (run, window, shared) in problem.runs(shape[2]) {
                    if window * lanes * unit_positions * unit_vectors * lanes_out > costs.body {
                        continue;
                    }
                    let [images, rows, columns] = shape;
                    let shape = [images, rows, columns.next_multiple_of(run)];
                    let unit_runs = (shape.iter().product::<usize>() / run).div_ceil(units[0]);
                    if unit_runs * run * unit_vectors * lanes_out > costs.sums {
                        continue;
                    }
                    let staged_taps = if shared { kernel } else { [1, 1] };
                    let all_units = units[0] * units[1];
                    for vectors in problem.staged_vectors(8) {
                        let mut tile = correlation::Tile {
                            patch: problem.patch(
                                shape,
                                staged_taps,
                                shared,
                                vectors,
                                all_units,
                                device,
                            ),
                            units,
                            run,
                            unit_runs,
                            unit_vectors,
                            lanes_out,
                            kernel,
                            taps: window,
                            window,
                            transposed,
                        };
                        // What the patch leaves holds the weights of so many windows.
                        let left = budget.saturating_sub(tile.patch.len() * lanes);
                        let fit = left / (tile.weights_len() * lanes_out);
                        if fit == 0 {
                            continue;
                        }
                        if shared {
                            tile.taps = (fit * window).min(taps);
                        }
                        let time = problem.time(&tile, &costs, device, blocks);
                        if best.as_ref().is_none_or(|(least, _)| time < *least) {
                            best = Some((time, tile));
                        }
                    }
                }
            }
        }
    }
    best.map(|(_, tile)| tile)
}

impl Problem {
    /// The model's time of a correlation.
    fn time(&self, tile: &correlation::Tile, costs: &Costs, device: &Device, blocks: usize) -> f64 {
        let patch = &tile.patch;
        let taps = (tile.kernel[0] * tile.kernel[1]) as f64;
        let channel_steps = self.channels.div_ceil(tile.channels()) as f64;
        let tap_steps = (taps / tile.taps as f64).ceil();
        let window = patch.window(tile.run, tile.window);
        let units = patch.units as f64;
        let turns = |len: usize| (len as f64 / units).ceil();

        let steps = channel_steps * taps / tile.window as f64 * patch.vectors as f64;
        let (m, n) = (tile.unit_positions() as f64, tile.unit_vectors as f64);
        let (lanes, lanes_out) = (patch.lanes as f64, tile.lanes_out as f64);
        let step = tile.window as f64 * m * n * lanes * lanes_out;
        let read = |lanes: f64| costs.read + costs.read_lane * lanes;
        let (columns, weights) = (tile.unit_runs * window.reads(), tile.window as f64 * lanes * n);
        let conflicts = device.conflicts(tile.units[1], tile.run * patch.column_step());
        let patches = channel_steps * if patch.shared { 1.0 } else { tap_steps };
        let stage = patches * turns(patch.len()) * self.stage_cost(costs, patch.lanes)
            + channel_steps
                * tap_steps
                * turns(tile.weights_len())
                * (costs.stage + costs.stage_lane * lanes_out);

        let sums = tile.unit_positions() * tile.unit_vectors * tile.lanes_out;
        let work = Work {
            cubes: self.tiles(patch.tile).iter().product::<usize>() * blocks * self.groups,
            units: patch.units,
            multiply: steps * step,
            read: steps * (columns as f64 * read(lanes) * conflicts + weights * read(lanes_out)),
            stage,
            steps: channel_steps * tap_steps,
            waits: patches * patch.batches(patch.len()).1 as f64
                + channel_steps * tap_steps * patch.batches(tile.weights_len()).1 as f64,
            registers: sums + columns * patch.lanes + tile.unit_vectors * tile.lanes_out,
            shared_bytes: (patch.len() * patch.lanes + tile.weights_len() * tile.lanes_out)
                * self.element_bytes,
            code: sums as f64 * (columns as f64 + weights),
        };
        work.time(device)
    }
}

/// Bytes that the partial sums of a weight gradient may take, over all cubes.
pub(super) const PARTIAL_BYTES: usize = 1 << 20;

/// The tile of the weight gradient, and how many cubes share the work of a block.
///
/// `None` if the device has not the shared memory for the smallest.
pub(super) fn weight_gradient_tile(
    problem: &Problem,
    bias: bool,
    partial_limit: usize,
    device: &Device,
) -> Option<(weight_gradient::Tile, usize)> {
    let costs = device.costs();
    let lanes = Problem::lanes(problem.channels);
    let lanes_out = Problem::lanes(problem.outputs);
    let kernel = [problem.height.taps, problem.width.taps];
    let budget = device.shared_bytes / problem.element_bytes;
    let result = problem.groups * problem.outputs * (problem.channels * kernel[0] * kernel[1] + 1);
    let fit = partial_limit / (result * size_of::<f32>()).max(1);
    let mut best: Option<(f64, (weight_gradient::Tile, usize))> = None;

    let tap_blocks = [
        kernel,
        [1, kernel[1]],
        [kernel[0].div_ceil(2), kernel[1]],
        [1, kernel[1].div_ceil(2)],
        [1, 1],
    ];
    let cuts: Vec<_> = problem
        .divisions(device)
        .flat_map(|(units, vectors)| {
            shares(units, device).into_iter().map(move |shares| (units, vectors, shares))
        })
        .collect();
    let mut shapes: Vec<_> =
        [16, 32, 64, 128].into_iter().flat_map(|p| problem.shapes(p)).collect();
    shapes.sort_unstable();
    shapes.dedup();
    for taps in tap_blocks {
        for vectors in problem.staged_vectors(16) {
            for &(units, unit_vectors, shares) in &cuts {
                let lines = taps[0] * vectors;
                let unit_lines = lines.div_ceil(units[0]);
                let sums = unit_lines * taps[1] * lanes * unit_vectors * lanes_out;
                // No more units than lines, but for a power of two.
                if sums > costs.sums || units[0] >= 2 * lines {
                    continue;
                }
                for &shape in &shapes {
                    for shared in [true, false] {
                        if shared && taps == [1, 1] {
                            continue;
                        }
                        let all_units = units[0] * units[1] * shares;
                        let mut tile = weight_gradient::Tile {
                            patch: problem.patch(shape, taps, shared, vectors, all_units, device),
                            units,
                            shares,
                            unit_lines,
                            unit_vectors,
                            lanes_out,
                            kernel,
                            run: 1,
                            rest: false,
                            bias,
                        };
                        if tile.shared_len() > budget {
                            continue;
                        }
                        for run in [1, 2, 3, 4] {
                            if run * tile.sums() * lanes_out > costs.body {
                                continue;
                            }
                            tile.run = run;
                            tile.rest = !shape[2].is_multiple_of(run)
                                || !problem.width.output.is_multiple_of(shape[2]);
                            let (time, splits) = problem.gradient_time(&tile, &costs, device, fit);
                            if best.as_ref().is_none_or(|(least, _)| time < *least) {
                                best = Some((time, (tile, splits)));
                            }
                        }
                    }
                }
            }
        }
    }
    best.map(|(_, choice)| choice)
}

/// Into how many shares of units a cube divides positions: as many as make it large enough for a card.
fn shares(units: [usize; 2], device: &Device) -> Vec<usize> {
    let few = units[0] * units[1];
    if device.software || device.max_units < 128 {
        return vec![1];
    }
    let large = [128, 256].into_iter().filter(|&all| few <= all && all <= device.max_units);
    large.map(|all| all / few).collect()
}

impl Problem {
    /// Blocks of output channels, of input channels, and of taps along both axes.
    pub fn blocks(&self, tile: &weight_gradient::Tile) -> [usize; 4] {
        let patch = &tile.patch;
        [
            self.outputs.div_ceil(tile.block_vectors() * tile.lanes_out),
            self.channels.div_ceil(patch.vectors * patch.lanes),
            tile.kernel[0].div_ceil(patch.taps[0]),
            tile.kernel[1].div_ceil(patch.taps[1]),
        ]
    }

    /// The model's time of a weight gradient, and the splits it is for: at most `fit`.
    fn gradient_time(
        &self,
        tile: &weight_gradient::Tile,
        costs: &Costs,
        device: &Device,
        fit: usize,
    ) -> (f64, usize) {
        let patch = &tile.patch;
        let units = patch.units as f64;
        let turns = |len: usize| (len as f64 / units).ceil();
        let (m, n) = (tile.unit_lines as f64, tile.unit_vectors as f64);
        let (lanes, lanes_out) = (patch.lanes as f64, tile.lanes_out as f64);
        let positions = patch.positions().div_ceil(tile.shares) as f64;
        let sums = tile.sums() * tile.lanes_out;
        let read = |lanes: f64| costs.read + costs.read_lane * lanes;
        let columns = patch.tile[2];
        let columns_met = |run: usize| patch.window(run, patch.taps[1]).reads();
        let held = columns_met(tile.run);
        let (mut reads, mut sites) = (0.0, 0.0);
        for (run, met, times) in
            [(tile.run, held, columns / tile.run), (1, columns_met(1), columns % tile.run)]
        {
            let x = m * met as f64;
            let dy = run as f64 * n;
            reads += times as f64 * (x * read(lanes) + dy * read(lanes_out));
            sites += if run == tile.run || tile.rest { x + dy } else { 0.0 };
        }
        let single = if self.channels_last { 1.0 } else { lanes_out };
        let stage = turns(patch.len()) * self.stage_cost(costs, patch.lanes)
            + turns(tile.gradient_len()) * (costs.stage + costs.stage_lane * single);

        let tiles = self.tiles(patch.tile).iter().product::<usize>();
        let blocks = self.blocks(tile).iter().product::<usize>() * self.groups;
        let time = |splits: usize| {
            let each = tiles.div_ceil(splits) as f64;
            // Writing and adding the partial sums, which the device's whole width shares.
            let extra = if splits > 1 { costs.stage * sums as f64 } else { 0.0 };
            // A share's sums are added through shared memory, a vector at a time.
            let shares = if tile.shares > 1 { 2 * tile.sums() } else { 0 };
            let work = Work {
                cubes: blocks * splits,
                units: patch.units,
                multiply: each * positions * sums as f64,
                read: each * positions / columns as f64 * reads,
                stage: each * stage + extra + shares as f64 * costs.stage,
                steps: each,
                waits: each
                    * (patch.batches(patch.len()).1 + patch.batches(tile.gradient_len()).1) as f64,
                registers: sums
                    + held * patch.lanes
                    + tile.run * tile.unit_vectors * tile.lanes_out,
                shared_bytes: tile.shared_len() * self.element_bytes,
                code: sums as f64 * sites,
            };
            work.time(device)
        };
        // As many as fill the device once, twice and so on.
        (0..=4)
            .map(|times| times * device.processors / blocks.max(1))
            .map(|splits| splits.min(fit).min(tiles).max(1))
            .map(|splits| (time(splits), splits))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there are five")
    }
}
