//! A layer at a batch size, with the data to compute it.

use std::fmt;
use std::str::FromStr;

use mec_core::catalogue::{Layer, layers};
use mec_core::{Error, Geometry, Settings, View};
use serde::{Deserialize, Serialize};

/// What is measured of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pass {
    /// Output from input and weight: `fwd`.
    #[serde(rename = "fwd")]
    Forward,
    /// Gradient in the input: `bwdx`.
    #[serde(rename = "bwdx")]
    InputGradient,
    /// Gradient in the weight: `bwdw`.
    #[serde(rename = "bwdw")]
    WeightGradient,
}

impl Pass {
    /// All of them, in the order of a training step.
    pub const ALL: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

    /// The shape of its result.
    pub fn result_shape(self, geometry: &Geometry) -> [usize; 4] {
        match self {
            Pass::Forward => geometry.output_shape(),
            Pass::InputGradient => geometry.input_shape(),
            Pass::WeightGradient => geometry.weight_shape(),
        }
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pass::Forward => "fwd",
            Pass::InputGradient => "bwdx",
            Pass::WeightGradient => "bwdw",
        })
    }
}

impl FromStr for Pass {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut all = Pass::ALL.into_iter();
        all.find(|pass| pass.to_string() == name)
            .ok_or_else(|| format!("no pass is called {name}: fwd, bwdx or bwdw"))
    }
}

/// `len` values in [-0.5, 0.5), the same on every machine and in every program of the comparison:
/// the element's index and the seed, mixed as Murmur3 ends, upper 24 bits.
pub fn fill(len: usize, seed: u32) -> Vec<f32> {
    let start = seed.wrapping_mul(0x9E37_79B9);
    let value = |index: u32| {
        let mut bits = index.wrapping_mul(0x9E37_79B1).wrapping_add(start);
        bits = (bits ^ (bits >> 16)).wrapping_mul(0x85EB_CA6B);
        bits = (bits ^ (bits >> 13)).wrapping_mul(0xC2B2_AE35);
        bits ^= bits >> 16;
        (bits >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|index| value(index as u32)).collect()
}

/// A convolution and its operands, row-major.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Sizes and options.
    pub geometry: Geometry,
    /// The input.
    pub x: Vec<f32>,
    /// The weight.
    pub weight: Vec<f32>,
    /// The gradient in the output.
    pub dy: Vec<f32>,
}

impl Problem {
    /// The convolution with the data of [`fill`]: seed 1 for the input, 2 for the weight, 3 for the
    /// gradient in the output.
    pub fn new(geometry: Geometry) -> Self {
        let filled = |shape: [usize; 4], seed| fill(shape.iter().product(), seed);
        Self {
            x: filled(geometry.input_shape(), 1),
            weight: filled(geometry.weight_shape(), 2),
            dy: filled(geometry.output_shape(), 3),
            geometry,
        }
    }

    /// Computes one pass with mec-core.
    ///
    /// # Errors
    ///
    /// As mec-core's functions.
    pub fn run(&self, pass: Pass) -> Result<Vec<f32>, Error> {
        let Self { geometry, x, weight, dy } = self;
        let settings = Settings::default();
        let x = View::contiguous(x, geometry.input_shape())?;
        let weight = View::contiguous(weight, geometry.weight_shape())?;
        let dy = View::contiguous(dy, geometry.output_shape())?;
        match pass {
            Pass::Forward => mec_core::forward(geometry, &settings, &x, &weight, None),
            Pass::InputGradient => mec_core::input_gradient(geometry, &settings, &dy, &weight),
            Pass::WeightGradient => mec_core::weight_gradient(geometry, &settings, &x, &dy),
        }
    }
}

/// The layers of the catalogue that `wanted` names, each with one of its batch sizes: `cv9` stands
/// for every batch size of that layer, `cv9b32` for one. All of them, if nothing is wanted.
///
/// # Errors
///
/// A sentence, if a name matches nothing.
pub fn select(wanted: &[String]) -> Result<Vec<(Layer, usize)>, String> {
    let mut all = Vec::new();
    for layer in layers() {
        all.extend(layer.batches.clone().into_iter().map(|batch| (layer.clone(), batch)));
    }
    let names = |name: &String, (layer, batch): &(Layer, usize)| {
        *name == layer.name || *name == format!("{}b{batch}", layer.name)
    };
    if let Some(name) = wanted.iter().find(|name| !all.iter().any(|case| names(name, case))) {
        return Err(format!("the catalogue has no layer {name}"));
    }
    all.retain(|case| wanted.is_empty() || wanted.iter().any(|name| names(name, case)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_with_or_without_their_batch() {
        let names = |wanted: &[&str]| -> Vec<String> {
            let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
            let cases = select(&wanted).unwrap();
            cases.iter().map(|(layer, batch)| format!("{}b{batch}", layer.name)).collect()
        };
        assert_eq!(names(&["cv9"]), ["cv9b1", "cv9b32"]);
        assert_eq!(names(&["cv10b32", "cv1b1"]), ["cv1b1", "cv10b32"]);
        assert_eq!(names(&[]).len(), layers().iter().map(|l| l.batches.len()).sum::<usize>());
        assert!(select(&["cv9b3".to_string()]).is_err());
    }

    #[test]
    fn values_are_those_of_the_other_programs() {
        // Computed by an implementation in another language.
        assert_eq!(fill(4, 3), [-0.39421862, -0.0031611323, 0.41967612, -0.089429915]);
        let values = fill(10_000, 1);
        assert!(values.iter().all(|v| (-0.5..0.5).contains(v)));
        assert!(values.iter().sum::<f32>().abs() < 100.0);
    }

    #[test]
    fn passes_have_names() {
        for pass in Pass::ALL {
            assert_eq!(pass.to_string().parse(), Ok(pass));
        }
        assert!("backward".parse::<Pass>().is_err());
    }
}
