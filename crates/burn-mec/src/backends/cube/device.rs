//! What a device allows, and what its instructions cost: all that the choice of tiles depends on.

use std::sync::LazyLock;

use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::prelude::CubeCount;

/// Processors of this machine. Asked for once: the answer takes reading files, and every launch needs it.
static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |n| n.get()));

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
        }
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
    /// Compiling a kernel, for each sum of a unit, spread over a hundred calls.
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

    /// Mesa's llvmpipe: a multiply-add is one instruction for eight units, but a read or a write is a
    /// loop over the eight, with a branch for each. So many sums pay, up to what compiles in reason: cv9
    /// at batch 1, forward, on two cores of Zen 2 took 152, 119 and 77 ms with 64, 128 and 256 of them,
    /// and 1.5, 2.0 and 4.7 s to compile.
    const SOFTWARE: Self = Self {
        read: 8.0,
        read_lane: 8.0,
        stage: 40.0,
        stage_lane: 25.0,
        barrier: 60.0,
        sums: 256,
        compile: 4e4,
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
