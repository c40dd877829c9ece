//! What a device allows, and what its instructions cost: all that the choice of tiles depends on.

use std::sync::LazyLock;

use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind, UIntKind};
use burn_cubecl::cubecl::prelude::CubeCount;

/// Processors of this machine. Asked for once: the answer takes reading files, and every launch needs it.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| n.get()));

/// Two 32-bit numbers.
const WORD: ElemType = ElemType::UInt(UIntKind::U64);

/// Limits of a device, read from its properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Device {
    /// Most units of a cube.
    pub max_units: usize,
    /// Bytes of shared memory a cube may take.
    pub shared_bytes: usize,
    /// Most cubes along each dimension of a launch.
    pub max_cubes: [u32; 3],
    /// Cubes that run at the same time, about.
    pub room: usize,
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
        let (x, y, z) = hardware.max_cube_count;
        let room = if software {
            hardware.num_cpu_cores.map_or_else(|| *PROCESSORS, |cores| cores as usize)
        } else {
            // Two cubes keep each multiprocessor busy. wgpu does not tell how many there are: 32 is
            // a middling card of today, on which a few cubes too many cost nothing.
            2 * hardware.num_streaming_multiprocessors.unwrap_or(32) as usize
        };
        Self {
            max_units: hardware.max_units_per_cube.min(hardware.max_cube_dim.0) as usize,
            shared_bytes: hardware.max_shared_memory_size,
            max_cubes: [x, y, z],
            room: room.max(1),
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
    /// Waiting for the cube's other units.
    pub barrier: f64,
    /// Most sums a unit keeps, as its registers allow.
    pub sums: usize,
    /// Compiling a kernel, for each sum of a unit and each place that reads for it, spread over thousands
    /// of calls.
    pub compile: f64,
}

impl Costs {
    /// A card: shared memory gives a unit four numbers in about the time of two multiply-adds, and
    /// global memory is hidden behind other cubes' work.
    const HARDWARE: Self = Self {
        read: 1.0,
        read_lane: 0.5,
        stage: 20.0,
        stage_lane: 8.0,
        barrier: 40.0,
        sums: 64,
        compile: 0.0,
    };

    /// Mesa's llvmpipe, fitted on two cores of Zen 2, where a multiply-add is one instruction for eight
    /// units, 0.83 ns. A read is a loop over the eight: each word is put into its vector through the
    /// stack, which stalls for about 28 cycles, whether it has 32 bits or 64. So words are packed, and
    /// reads are more than nine tenths of the time: what pays is many sums, and runs that read a column
    /// once. What limits them is LLVM, whose time goes with the sums times the reads: cv9 at batch 1,
    /// forward, took 52, 37 and 31 ms with 128, 256 and 512 sums, and 1.7, 5 and 13 s to compile.
    const SOFTWARE: Self = Self {
        read: 10.0,
        read_lane: 45.0,
        stage: 250.0,
        stage_lane: 40.0,
        barrier: 120.0,
        sums: 256,
        compile: 70.0,
    };
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
            room: 2,
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
