//! What a device allows, and what its instructions cost: all that the choice of tiles depends on.

use std::sync::LazyLock;

use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind, UIntKind};
use burn_cubecl::cubecl::prelude::CubeCount;

/// Processors of this machine. Asked for once: the answer takes reading files, and every launch needs it.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| n.get()));

/// Whether a test wants the plans of a card on whatever device there is.
#[cfg(test)]
pub(super) static AS_CARD: std::sync::atomic::AtomicBool =
    std::sync::atomic::AtomicBool::new(false);

/// Two 32-bit numbers.
const WORD: ElemType = ElemType::UInt(UIntKind::U64);

/// Most bytes of shared memory that a cube takes, where a device offers more: a multiprocessor has room
/// for several such cubes, each of which works while others wait.
const SHARED_BYTES: usize = 48 << 10;

/// Limits of a device, read from its properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Device {
    /// Most units of a cube.
    pub max_units: usize,
    /// Bytes of shared memory a cube may take.
    pub shared_bytes: usize,
    /// Most cubes along each dimension of a launch.
    pub max_cubes: [u32; 3],
    /// Processors: what a software device has threads, and a card multiprocessors.
    pub processors: usize,
    /// Whether it is a processor that plays a GPU.
    pub software: bool,
    /// Whether 32-bit numbers are moved by twos, in a word.
    pub packs: bool,
}

impl Device {
    pub fn of(client: &Client) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        // A device that is no card: lavapipe, SwiftShader, WARP, or CubeCL's own CPU runtime.
        let software = hardware.num_cpu_cores.is_some() || properties.identity.physical.is_none();
        #[cfg(test)]
        let software = software && !AS_CARD.load(std::sync::atomic::Ordering::Relaxed);
        let (x, y, z) = hardware.max_cube_count;
        let processors = if software {
            hardware.num_cpu_cores.map_or_else(|| *PROCESSORS, |cores| cores as usize)
        } else {
            // wgpu does not tell. A card of today has 20 to 170: too few here and a small problem
            // leaves a large card idle, too many and its tiles are a little small.
            hardware.num_streaming_multiprocessors.map_or(64, |processors| processors as usize)
        };
        Self {
            max_units: hardware.max_units_per_cube.min(hardware.max_cube_dim.0) as usize,
            shared_bytes: hardware.max_shared_memory_size.min(SHARED_BYTES),
            max_cubes: [x, y, z],
            processors: processors.max(1),
            software,
            // Such a device moves words one by one, in the same time whatever their size.
            packs: software && properties.supports_type(WORD),
        }
    }

    /// How a kernel moves a vector of `lanes` numbers: the type of a word, and how many words.
    pub fn words(&self, elem: ElemType, lanes: usize) -> (ElemType, usize) {
        let packs = self.packs && elem == ElemType::Float(FloatKind::F32) && lanes == 4;
        if packs { (WORD, lanes / 2) } else { (elem, lanes) }
    }

    /// Cubes that keep the device busy, about.
    pub fn room(&self) -> usize {
        // While one waits, another works.
        self.processors * if self.software { 1 } else { 2 }
    }

    /// How many of the eight units that a card's shared memory serves in a cycle read from the same
    /// banks, where groups of `units` read the same vector and those of the next group lie `apart`.
    pub fn conflicts(&self, units: usize, apart: usize) -> f64 {
        if self.software {
            return 1.0;
        }
        let mut readers = [0u8; 8];
        for group in 0..8usize.div_ceil(units) {
            readers[group * apart % 8] += 1;
        }
        f64::from(readers.into_iter().max().expect("there are eight"))
    }

    /// The costs of this kind of device.
    pub fn costs(&self) -> Costs {
        if self.software { Costs::SOFTWARE } else { Costs::HARDWARE }
    }

    /// A launch of at least `cubes` cubes, or `None` if the device cannot count so many.
    ///
    /// There may be more than `cubes`: kernels end those.
    pub fn cube_count(&self, cubes: usize) -> Option<CubeCount> {
        let mut left = cubes;
        let mut count = [1; 3];
        for (count, &max) in count.iter_mut().zip(&self.max_cubes) {
            *count = left.min(max as usize).max(1);
            left = left.div_ceil(*count);
        }
        let [x, y, z] = count.map(|count| count as u32);
        (left <= 1).then_some(CubeCount::Static(x, y, z))
    }
}

/// What a unit spends on its instructions, in multiply-adds. Only ratios count, and only roughly: they
/// rank tiles, no more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Costs {
    /// Reading one vector, or one number, from shared memory.
    pub read: f64,
    pub read_lane: f64,
    /// Staging one vector in shared memory: finding it, reading it, storing it.
    pub stage: f64,
    /// The same for each number of it that is read by itself.
    pub stage_lane: f64,
    /// Most sums a unit keeps, as its registers allow.
    pub sums: usize,
    /// Most multiply-adds of a loop's body.
    pub body: usize,
    /// Most vectors that a unit reads from global memory before it stores the first of them.
    pub batch: usize,
}

impl Costs {
    /// A card, from an H100's counters. A multiprocessor multiplies for 128 units at a time, but its
    /// shared memory gives 32 numbers at a time: four cycles for a vector of each of 32 units, whether
    /// they read the same one or not. Staging is about 25 instructions, of which a processor does as many
    /// as of multiply-adds, and a store. With one vector at a time, a quarter of cv9's forward pass and
    /// most of its weight gradient was waiting for global memory. Bodies of loops are unrolled by us: a
    /// compiler takes about a second for 2,000 multiply-adds.
    const HARDWARE: Self = Self {
        read: 0.0,
        read_lane: 4.0,
        stage: 40.0,
        stage_lane: 8.0,
        sums: 128,
        body: 1024,
        batch: 4,
    };

    /// Mesa's llvmpipe, fitted on two cores of Zen 2, where a multiply-add is one instruction for eight
    /// units, 0.83 ns. A read is a loop over the eight: each word is put into its vector through the
    /// stack, which stalls for about 28 cycles, whether it has 32 bits or 64. So words are packed, and
    /// reads are more than nine tenths of the time: what pays is many sums, and runs that read a column
    /// once.
    const SOFTWARE: Self = Self {
        read: 10.0,
        read_lane: 45.0,
        stage: 250.0,
        stage_lane: 40.0,
        sums: 256,
        body: usize::MAX,
        batch: 1,
    };
}

/// What the units of a launch do, each in multiply-adds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub cubes: usize,
    pub units: usize,
    pub multiply: f64,
    /// Reading from shared memory.
    pub read: f64,
    /// Bringing operands to shared memory, and what is beside the loops.
    pub stage: f64,
    /// How often the units wait for each other, and how often for global memory.
    pub steps: f64,
    pub waits: f64,
    /// Numbers that a unit keeps.
    pub registers: usize,
    pub shared_bytes: usize,
    /// Sums of a unit times the places that read for them, in the kernel's code.
    pub code: f64,
}

impl Work {
    /// The time of a launch, in multiply-adds.
    pub fn time(&self, device: &Device) -> f64 {
        if device.software { self.software_time(device) } else { self.card_time(device) }
    }

    /// On a processor that runs a cube's units eight at a time, one after the other. Waiting is changing
    /// from one to the next. What limits the sums is LLVM, whose time goes with the sums times the reads,
    /// and is spread over thousands of calls: cv9 at batch 1, forward, took 52, 37 and 31 ms with 128, 256
    /// and 512 sums, and 1.7, 5 and 13 s to compile.
    fn software_time(&self, device: &Device) -> f64 {
        const BARRIER: f64 = 120.0;
        const COMPILE: f64 = 70.0;
        let rounds = self.cubes.div_ceil(device.processors) as f64;
        let unit = self.multiply + self.read + self.stage + 2.0 * BARRIER * self.steps;
        rounds * (self.units as f64 / 8.0).ceil() * unit + COMPILE * self.code
    }

    /// On multiprocessors that keep as many cubes at work as their registers and shared memory hold.
    ///
    /// The catalogue's forward passes and input gradients took an H100 1.2 to 1.7 times as many cycles,
    /// but for those that global memory or the launch bounds.
    fn card_time(&self, device: &Device) -> f64 {
        // Registers of a multiprocessor, and most of a unit. Compilers take a quarter more than what we
        // ask to be kept and addresses, which are about 32.
        const REGISTERS: usize = 64 << 10;
        const UNIT_REGISTERS: usize = 255;
        // Cycles from a read of global memory to what waits for it.
        const LATENCY: f64 = 800.0;
        // A unit alone: a multiply-add takes an instruction of one of four schedulers, and the reads
        // before do not overlap with it.
        const ALONE: f64 = 1.5;
        let registers = (self.registers + 32) * 5 / 4;
        if registers > UNIT_REGISTERS {
            return f64::INFINITY;
        }
        let resident = (REGISTERS / (registers * self.units))
            .min(2 * SHARED_BYTES / self.shared_bytes.max(1))
            .min(2048 / self.units)
            .clamp(1, 16);
        // Shared memory and multiplication work at the same time, not quite.
        let loops = self.multiply.max(self.read) + 0.25 * self.multiply.min(self.read);
        let unit = loops + self.stage;
        let alone = unit * ALONE + LATENCY * self.waits;
        let busy = |cubes: usize| alone.max(unit * (cubes * self.units) as f64 / 128.0);
        let together = device.processors * resident;
        let rest = self.cubes % together;
        let last = if rest > 0 { busy(rest.div_ceil(device.processors)) } else { 0.0 };
        (self.cubes / together) as f64 * busy(resident) + last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubes_are_counted_within_the_limits() {
        let device = Device {
            max_units: 256,
            shared_bytes: 16384,
            max_cubes: [10, 20, 30],
            processors: 2,
            software: false,
            packs: false,
        };
        for cubes in [0, 1, 9, 10, 11, 199, 200, 201, 5999, 6000] {
            let Some(CubeCount::Static(x, y, z)) = device.cube_count(cubes) else {
                panic!("{cubes} cubes fit")
            };
            assert!(x <= 10 && y <= 20 && z <= 30 && (x * y * z) as usize >= cubes);
        }
        assert!(device.cube_count(6001).is_none());
    }
}
