//! The layers that tests, benches and the profiler name: `layers.toml`, read.
//!
//! The paper's twelve layers (Table 2) and layers that models train with today. One catalogue, so
//! that a number in one place can be compared with a number in another.

use serde::Deserialize;

use crate::{ConvOptions, Error, Geometry};

/// One convolution layer of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its name, for example `cv9`.
    pub name: String,
    /// Height, width and channels of the input.
    pub input: [usize; 3],
    /// Height and width of the kernel, and channels of the output.
    pub kernel: [usize; 3],
    /// Stride along both axes.
    pub stride: usize,
    /// Padding on all four sides.
    #[serde(default)]
    pub padding: usize,
    /// Dilation along both axes.
    #[serde(default = "one")]
    pub dilation: usize,
    /// Independent blocks of channels.
    #[serde(default = "one")]
    pub groups: usize,
    /// The batch sizes to measure.
    #[serde(rename = "batch")]
    pub batches: Vec<usize>,
}

fn one() -> usize {
    1
}

impl Layer {
    /// The layer's options.
    pub fn options(&self) -> ConvOptions {
        ConvOptions {
            stride: [self.stride; 2],
            padding: [(self.padding, self.padding); 2],
            dilation: [self.dilation; 2],
            groups: self.groups,
        }
    }

    /// The layer as a problem of `batch` images.
    ///
    /// # Errors
    ///
    /// As [`Geometry::new`]: a layer of somebody's own may be no convolution, and `batch` so large that
    /// the tensors cannot be addressed.
    pub fn try_geometry(&self, batch: usize) -> Result<Geometry, Error> {
        let [height, width, channels_in] = self.input;
        let [kernel_h, kernel_w, channels_out] = self.kernel;
        // Without a group, `Geometry` refuses with a sentence.
        let per_group = channels_in.checked_div(self.groups).unwrap_or(0);
        let input = [batch, channels_in, height, width];
        let weight = [channels_out, per_group, kernel_h, kernel_w];
        Geometry::new(input, weight, &self.options())
    }

    /// The layer as a problem of `batch` images.
    ///
    /// # Panics
    ///
    /// Where [`Layer::try_geometry`] returns an error.
    pub fn geometry(&self, batch: usize) -> Geometry {
        self.try_geometry(batch)
            .unwrap_or_else(|error| panic!("layer {} at batch {batch}: {error}", self.name))
    }
}

/// Every layer, in the order of the file.
pub fn layers() -> Vec<Layer> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Catalogue {
        layer: Vec<Layer>,
    }
    let catalogue: Catalogue =
        toml::from_str(include_str!("../layers.toml")).expect("a test reads the whole catalogue");
    catalogue.layer
}

/// The layer called `name`.
///
/// # Panics
///
/// If there is none.
pub fn layer(name: &str) -> Layer {
    layers()
        .into_iter()
        .find(|layer| layer.name == name)
        .unwrap_or_else(|| panic!("the catalogue has no layer {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_valid() {
        let layers = layers();
        assert!(layers.len() >= 21);
        for (i, layer) in layers.iter().enumerate() {
            assert!(!layer.batches.is_empty(), "{} has no batch size", layer.name);
            for &batch in &layer.batches {
                assert_eq!(layer.geometry(batch).batch, batch);
            }
            assert!(layers[..i].iter().all(|l| l.name != layer.name), "{} is twice", layer.name);
        }
    }

    #[test]
    fn options_left_out_take_their_defaults() {
        assert_eq!(layer("cv1").options(), ConvOptions { stride: [4, 4], ..Default::default() });
        let depthwise = layer("dw1").geometry(2);
        assert!(depthwise.is_depthwise());
        assert_eq!(depthwise.output_shape(), [2, 64, 56, 56]);
    }
}
