//! From tensors to launches.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex};

use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::ir::{AddressType, ElemType};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, empty_device_dtype};
use burn_cubecl::ops::permute_nhwc_to_nchw;
use burn_cubecl::tensor::CubeTensor;
use mec_core::{Geometry, Reach, Settings};

use super::device::Device;
use super::plan::{self, Problem};
use super::staging::AxisArgsLaunch;
use super::{Error, correlation, depthwise, weight_gradient};

/// The forward pass.
pub(super) fn forward(
    x: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    geometry: &Geometry,
) -> Result<CubeTensor, Error> {
    let y = channels_last(&x, geometry.output_shape());
    let problem = Problem::forward(geometry, is_channels_last(&x), x.elem_size());
    correlate(x, weight, bias, &y, &problem, geometry, false)?;
    Ok(y)
}

/// The gradient in the input: a correlation for each phase of its positions.
pub(super) fn input_gradient(
    dy: CubeTensor,
    weight: CubeTensor,
    geometry: &Geometry,
) -> Result<CubeTensor, Error> {
    let dx = channels_last(&dy, geometry.input_shape());
    // Phases beyond the input's size compute nothing.
    let rows = geometry.height.stride.min(geometry.height.input);
    let columns = geometry.width.stride.min(geometry.width.input);
    for row in 0..rows {
        for column in 0..columns {
            let problem = Problem::input_gradient(
                geometry,
                [row, column],
                is_channels_last(&dy),
                dy.elem_size(),
            );
            correlate(dy.clone(), weight.clone(), None, &dx, &problem, geometry, true)?;
        }
    }
    Ok(dx)
}

fn correlate(
    input: CubeTensor,
    weight: CubeTensor,
    bias: Option<CubeTensor>,
    output: &CubeTensor,
    problem: &Problem,
    geometry: &Geometry,
    transposed: bool,
) -> Result<(), Error> {
    if output.meta.num_elements() == 0 {
        return Ok(());
    }
    if geometry.is_depthwise() {
        return depthwise::correlate(input, weight, bias, output, problem);
    }
    let client = output.client.clone();
    let device = Device::of(&client);
    let key = (*problem, transposed, device);
    static TILES: Cache<(Problem, bool, Device), Option<correlation::Tile>> = Cache::new();
    let tile = TILES
        .get(key, || plan::correlation_tile(problem, transposed, &device))
        .ok_or(Error::Device { what: "shared memory" })?;

    let [images, rows, columns] = problem.tiles(tile.patch.tile);
    let blocks = problem.outputs.div_ceil(tile.block_vectors() * tile.lanes_out);
    let cubes = cubes(&device, [images, rows, columns, blocks, problem.groups])?;
    let dtype = output.dtype;
    let (lanes, lanes_out) = (tile.patch.lanes, tile.lanes_out);
    let (word, words) = device.words(elem(dtype), lanes);
    let (word_out, words_out) = device.words(elem(dtype), lanes_out);
    let (moved, moved_words) =
        device.words(elem(dtype), vector_size(&input, lanes, problem.channels));
    let (stored, stored_words) =
        device.words(elem(dtype), vector_size(output, lanes_out, problem.outputs));
    let address = address_type([&input, &weight, output]);
    // SAFETY: the kernel reads positions and channels of `input`, `weight` and `bias` that exist, which
    // it tests, and writes those of `output`. Units past the last cube end at once, whole cubes together.
    unsafe {
        correlation::correlation_kernel::launch_unchecked(
            &client,
            cubes,
            CubeDim::new_1d(tile.patch.units as u32),
            address,
            input.into_tensor_arg(),
            weight.into_tensor_arg(),
            bias.map(|bias| bias.into_tensor_arg()).into(),
            output.clone().into_tensor_arg(),
            correlation::GridLaunch::new(images, rows, columns, blocks, problem.groups),
            axis(&problem.height),
            axis(&problem.width),
            problem.channels,
            problem.outputs,
            tile,
            [lanes, words, moved_words, lanes_out, words_out, stored_words],
            [elem(dtype), accumulator(dtype), word, moved, word_out, stored],
        );
    }
    Ok(())
}

/// The gradients in the weight and, if `bias`, in the bias.
pub(super) fn weight_gradient(
    x: CubeTensor,
    dy: CubeTensor,
    geometry: &Geometry,
    settings: &Settings,
    bias: bool,
) -> Result<(CubeTensor, Option<CubeTensor>), Error> {
    let limit = settings.workspace_limit.unwrap_or(plan::PARTIAL_BYTES).min(plan::PARTIAL_BYTES);
    let (client, cube_device, dtype) = (dy.client.clone(), dy.device.clone(), dy.dtype);
    let contiguous = |shape: &[usize], dtype| {
        let shape = Shape::from(shape.to_vec());
        empty_device_contiguous_dtype(client.clone(), cube_device.clone(), shape, dtype)
    };
    let weight_shape = geometry.weight_shape();
    let dw = contiguous(&weight_shape, dtype);
    let db = bias.then(|| contiguous(&[geometry.channels_out], dtype));
    if dw.meta.num_elements() == 0 {
        return Ok((dw, db));
    }
    if dy.meta.num_elements() == 0 {
        let zeros =
            |like: CubeTensor| CubeBackend::float_zeros(like.shape(), &cube_device, dtype.into());
        return Ok((zeros(dw), db.map(zeros)));
    }
    let device = Device::of(&client);
    let problem = Problem::forward(geometry, is_channels_last(&x), x.elem_size());
    let address = address_type([&x, &dy, &dw]);

    let run = |splits: usize, launch: &dyn Fn(&CubeTensor, Option<&CubeTensor>)| {
        if splits == 1 {
            launch(&dw, db.as_ref());
            return;
        }
        let partial = accumulator_type(dtype);
        let copies =
            |tensor: &CubeTensor| contiguous(&[splits, tensor.meta.num_elements()], partial);
        let (dw_parts, db_parts) = (copies(&dw), db.as_ref().map(copies));
        launch(&dw_parts, db_parts.as_ref());
        sum_splits(dw_parts, &dw, splits, &device);
        if let (Some(parts), Some(db)) = (db_parts, &db) {
            sum_splits(parts, db, splits, &device);
        }
    };

    if geometry.is_depthwise() {
        depthwise::weight_gradient(x, dy, geometry, limit, &device, run)?;
        return Ok((dw, db));
    }

    let key = (problem, bias, limit, device);
    type Key = (Problem, bool, usize, Device);
    static TILES: Cache<Key, Option<(weight_gradient::Tile, usize)>> = Cache::new();
    let (tile, splits) = TILES
        .get(key, || plan::weight_gradient_tile(&problem, bias, limit, &device))
        .ok_or(Error::Device { what: "shared memory" })?;
    let [images, rows, columns] = problem.tiles(tile.patch.tile);
    let [output_blocks, channel_blocks, tap_rows, tap_columns] = problem.blocks(&tile);
    let blocks = [output_blocks, channel_blocks, tap_rows, tap_columns];
    let cubes = cubes(&device, blocks.into_iter().chain([problem.groups, splits]))?;
    let (lanes, lanes_out) = (tile.patch.lanes, tile.lanes_out);
    let (word, words) = device.words(elem(dtype), lanes);
    let (word_out, words_out) = device.words(elem(dtype), lanes_out);
    let (word_x, words_x) = device.words(elem(dtype), vector_size(&x, lanes, problem.channels));
    let (word_dy, words_dy) =
        device.words(elem(dtype), vector_size(&dy, lanes_out, problem.outputs));
    run(splits, &|dw, db| {
        // SAFETY: the kernel reads positions and channels of `x` and `dy` that exist, which it tests, and
        // writes each element of `splits` copies of the gradients. Units past the last cube end at once,
        // whole cubes together.
        unsafe {
            weight_gradient::weight_gradient_kernel::launch_unchecked(
                &client,
                cubes.clone(),
                CubeDim::new_1d(tile.patch.units as u32),
                address,
                x.clone().into_tensor_arg(),
                dy.clone().into_tensor_arg(),
                dw.clone().into_buffer_arg(),
                db.map(|db| db.clone().into_buffer_arg()).into(),
                weight_gradient::GridLaunch::new(
                    output_blocks,
                    channel_blocks,
                    tap_rows,
                    tap_columns,
                    problem.groups,
                    splits,
                    images,
                    rows,
                    columns,
                ),
                axis(&problem.height),
                axis(&problem.width),
                problem.channels,
                problem.outputs,
                tile,
                [lanes, words, words_x, lanes_out, words_out, words_dy],
                [elem(dtype), accumulator(dtype), elem(dw.dtype), word, word_x, word_out, word_dy],
            );
        }
    });
    Ok((dw, db))
}

/// Adds the copies in `parts` into `result`.
fn sum_splits(parts: CubeTensor, result: &CubeTensor, splits: usize, device: &Device) {
    let len = result.meta.num_elements();
    let units = 64.min(device.max_units);
    let cubes = device.cube_count(len.div_ceil(units)).expect("a weight has few elements");
    let address = address_type([&parts, result]);
    let dtypes = [elem(result.dtype), elem(parts.dtype)];
    // SAFETY: each unit with a position below `len` reads it in all copies and writes it.
    unsafe {
        weight_gradient::sum_splits_kernel::launch_unchecked(
            &result.client,
            cubes,
            CubeDim::new_1d(units as u32),
            address,
            parts.into_buffer_arg(),
            result.clone().into_buffer_arg(),
            len,
            splits,
            dtypes,
        );
    }
}

pub(super) fn cubes(
    device: &Device,
    counts: impl IntoIterator<Item = usize>,
) -> Result<CubeCount, Error> {
    counts
        .into_iter()
        .try_fold(1usize, usize::checked_mul)
        .filter(|&cubes| cubes <= u32::MAX as usize)
        .and_then(|cubes| device.cube_count(cubes))
        .ok_or(Error::Device { what: "number of cubes" })
}

pub(super) fn axis(reach: &Reach) -> AxisArgsLaunch {
    AxisArgsLaunch::new(
        reach.input,
        reach.output,
        reach.step,
        reach.base as i32,
        reach.taps,
        reach.tap_step,
        reach.weight_first as i32,
        reach.weight_step as i32,
        reach.out_step,
        reach.out_base,
    )
}

/// A tensor of `shape`, NCHW, whose channels lie innermost in memory, on the device of `like`.
pub(super) fn channels_last(like: &CubeTensor, [n, c, h, w]: [usize; 4]) -> CubeTensor {
    let shape = Shape::from([n, h, w, c]);
    permute_nhwc_to_nchw(empty_device_dtype(
        like.client.clone(),
        like.device.clone(),
        shape,
        like.dtype,
    ))
}

/// Whether neighbouring channels are neighbours in memory, and neighbouring columns are not.
pub(super) fn is_channels_last(tensor: &CubeTensor) -> bool {
    tensor.meta.shape()[1] > 1 && tensor.meta.strides()[1] == 1
}

/// Whether a kernel may move `lanes` channels of `tensor` in one instruction: `lanes`, or else 1.
pub(super) fn vector_size(tensor: &CubeTensor, lanes: usize, group_channels: usize) -> usize {
    let strides = tensor.meta.strides();
    let whole = |elements: usize| elements.is_multiple_of(lanes);
    let offset = tensor.handle.offset_start.unwrap_or(0) as usize;
    let aligned = is_channels_last(tensor)
        && whole(group_channels)
        && [0, 2, 3].iter().all(|&axis| whole(strides[axis]))
        && offset.is_multiple_of(lanes * tensor.elem_size());
    if aligned { lanes } else { 1 }
}

pub(super) fn address_type<'a>(tensors: impl IntoIterator<Item = &'a CubeTensor>) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

pub(super) fn elem(dtype: DType) -> ElemType {
    dtype_to_elem_type(dtype)
}

/// The type sums are kept in: `f32` for half precision.
pub(super) fn accumulator(dtype: DType) -> ElemType {
    elem(accumulator_type(dtype))
}

fn accumulator_type(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// What was computed once, by what it was computed from.
pub(super) struct Cache<K, V>(LazyLock<Mutex<HashMap<K, V>>>);

impl<K: Hash + Eq, V: Copy> Cache<K, V> {
    pub const fn new() -> Self {
        Self(LazyLock::new(|| Mutex::new(HashMap::new())))
    }

    pub fn get(&self, key: K, compute: impl FnOnce() -> V) -> V {
        let mut values = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *values.entry(key).or_insert_with(compute)
    }
}
