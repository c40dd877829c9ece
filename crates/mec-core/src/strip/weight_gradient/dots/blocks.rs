//! How such a weight gradient is cut into blocks of the result and panels: plain data.

use crate::kernel::{Kernel, Span, Vector};
use crate::plan::Piece;
use crate::strip::correlation::Correlation;
use crate::strip::positions::Positions;
use crate::strip::weight_gradient::Division;

/// The plan of a weight gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// The positions of each panel.
    pub positions: Positions,
    /// Whether `dy` is copied, a tile's outputs at a time: where it does not lie in one piece, or where whole
    /// images would leave too many lanes of a register empty.
    pub staged: bool,
    /// Blocks.
    pub division: Division,
    /// Output channels of a tile.
    tile: usize,
    /// Elements of a register: a panel begins so many behind a line at most.
    lanes: usize,
    taps: usize,
}

/// Positions a part should sum over: adding a part to the result costs about as much as 20.
const POSITIONS_WANTED: usize = 512;

/// Kernel elements of a block below which reading `dy` for each block shows.
const ELEMENTS_WANTED: usize = 72;

/// Channels each way of a block below which it does where they are few all the same, and packing `x` too.
const CHANNELS_WANTED: usize = 32;

/// Positions of a panel from which adding up the lanes of its sums no longer shows.
const PANEL_POSITIONS: usize = 1024;

impl Blocks {
    /// Plans the weight gradient of forward correlation `c` for at most `limit` bytes in each thread; `None`
    /// if even the smallest blocks do not fit. `joined` says that each plane of `dy` lies in one piece.
    pub fn new<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        limit: usize,
        joined: bool,
    ) -> Option<Self> {
        let with = |positions, channels, outputs| {
            Self::with(c, kernel, joined, positions, channels, outputs)
        };
        let fits = |plan: &Self| {
            plan.worker_bytes::<T>() <= limit
                && plan.panel_len() * size_of::<T>() <= kernel.panel_bytes
                && plan.sums_len() * size_of::<T>() <= limit / 2
        };
        // As many channels as fit, if they are enough.
        let most = |positions, outputs, enough| {
            let channels = (1..=c.channels).map(|n| c.channels.div_ceil(n));
            channels
                .take_while(|&channels| channels >= enough)
                .map(|channels| with(positions, channels, outputs))
                .find(fits)
        };
        let halves = |most: usize, least: usize| {
            std::iter::successors(Some(most), move |&n| (n > least).then(|| n.div_ceil(2)))
        };
        // From the sizes that are wanted down to the smallest: one position, one channel each way.
        let wanted =
            [(c.channels.min(ELEMENTS_WANTED.div_ceil(c.taps())), PANEL_POSITIONS / 16), (1, 1)];
        let found = wanted.into_iter().find_map(|(enough, least)| {
            halves(c.outputs, 1).find_map(|outputs| {
                halves(PANEL_POSITIONS, least)
                    .find_map(|positions| Some((positions, most(positions, outputs, enough)?)))
            })
        });
        let Some((positions, mut plan)) = found else {
            return Some(with(1, 1, 1)).filter(|plan| plan.worker_bytes::<T>() <= limit);
        };
        while plan.division.has_few_tasks() && plan.division.channels() >= 2 * CHANNELS_WANTED {
            let [channels, outputs] = plan.division.most();
            plan = with(positions, channels.div_ceil(2), outputs);
        }
        while plan.division.has_few_tasks() && plan.division.outputs() >= 2 * CHANNELS_WANTED {
            let [channels, outputs] = plan.division.most();
            plan = with(positions, channels, outputs.div_ceil(2));
        }
        Some(plan)
    }

    /// Bytes of the smallest blocks that work for `c`, for each thread.
    pub fn smallest<T: Vector>(c: &Correlation, kernel: &Kernel<T>, joined: bool) -> usize {
        Self::with(c, kernel, joined, 1, 1, 1).worker_bytes::<T>()
    }

    fn with<T: Vector>(
        c: &Correlation,
        kernel: &Kernel<T>,
        joined: bool,
        positions: usize,
        channels: usize,
        outputs: usize,
    ) -> Self {
        let panel = Positions::new(c, positions);
        let ragged = panel.images > 1 && Self::ragged(c, kernel.lanes);
        let most = c.batch * c.height.output * c.width.output / POSITIONS_WANTED;
        let most = most.min(panel.panels(c));
        Self {
            positions: if ragged { panel.folded(c) } else { panel },
            staged: ragged || !joined,
            division: Division::new(c, channels, outputs).in_parts(most),
            tile: kernel.dot_outputs,
            lanes: kernel.lanes,
            taps: c.taps(),
        }
    }

    /// Whether registers would be so empty at the end of each image that a row plane for each kernel row and a
    /// copy of `dy`, which let images follow each other, take less time.
    fn ragged(c: &Correlation, lanes: usize) -> bool {
        let registers = (c.height.output * c.width.output) as f64 / lanes as f64;
        // Half a cycle for each multiply-add of registers, 2.5 for each copy; half of one more register's sums
        // for the mask.
        let empty = registers.ceil() - registers + if registers.fract() > 0.0 { 0.5 } else { 0.0 };
        let sums = 0.5 * (c.taps() * c.outputs) as f64;
        let planes = (c.taps() - c.width.taps) as f64;
        empty * sums > 2.5 * registers * (planes + c.outputs as f64 / c.channels as f64)
    }

    /// Elements of a panel.
    pub fn panel_len(&self) -> usize {
        self.division.channels() * self.positions.channel_len()
    }

    /// Elements from a panel to the ones that the bias gradient meets as another kernel element, wherever it begins.
    pub fn ones(&self) -> usize {
        self.panel_len() + self.lanes
    }

    /// Elements of the ones.
    pub fn ones_len(&self) -> usize {
        self.positions.plane_len() + self.lanes
    }

    /// Elements of the copies of `dy`.
    pub fn stage_len(&self) -> usize {
        if self.staged { self.tile.min(self.division.outputs()) * self.positions.len() } else { 0 }
    }

    /// Kernel elements of the block, the bias as one more.
    pub fn elements(&self) -> usize {
        self.division.channels() * self.taps + 1
    }

    /// Elements from a kernel element's sums to the next's: whole tiles of output channels.
    pub fn sums_element(&self) -> usize {
        self.division.outputs().next_multiple_of(self.tile)
    }

    /// Elements of the sums.
    pub fn sums_len(&self) -> usize {
        self.elements() * self.sums_element()
    }

    /// Elements of workspace for each thread: panel, a plane of ones for the bias, copies of `dy`, sums.
    pub fn workspace_len(&self) -> usize {
        self.ones() + self.ones_len() + self.stage_len() + self.sums_len()
    }

    /// Bytes that [`run`] takes for each thread.
    pub fn worker_bytes<T>(&self) -> usize {
        self.workspace_len() * size_of::<T>()
            + self.positions.images * size_of::<Span>()
            + self.elements() * size_of::<usize>()
    }

    /// What a reader of the plan sees of it.
    pub fn piece(&self, c: &Correlation) -> Piece {
        self.positions.piece(c, self.division.channels(), self.division.tasks())
    }
}
