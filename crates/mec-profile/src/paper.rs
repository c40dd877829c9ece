//! The paper's tables: what im2col, the lowered matrix L and the strips take, layer by layer.
//!
//! The formulas are those of Cho & Brand (ICML 2017) as [`mec_core::Footprint`] has them; what the
//! strips take is what their plan says; and each can be measured.

use std::time::Instant;

use mec_core::catalogue::{self, Layer};
use mec_core::{Error as CoreError, Geometry, Pass, Plan, Settings, View, forward, im2col, paper};
use serde::{Deserialize, Serialize};

use crate::{Error, MemoryUse, measure};

/// The paper's Table 3: how often each layer is in ResNet-101.
pub const RESNET_101: [(&str, u64); 5] =
    [("cv4", 1), ("cv9", 3), ("cv10", 4), ("cv11", 23), ("cv12", 3)];

/// What a layer takes, in bytes over the whole batch unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerMemory {
    /// Its name.
    pub layer: String,
    /// Images.
    pub batch: usize,
    /// Height, width and channels of the input.
    pub input: [usize; 3],
    /// Height and width of the kernel, and channels of the output.
    pub kernel: [usize; 3],
    /// Stride along both axes.
    pub stride: usize,
    /// The im2col matrix.
    pub im2col: u64,
    /// The paper's lowered matrix L.
    pub lowered: u64,
    /// What L saves over im2col; negative where L is larger.
    pub saving: i64,
    /// How many times larger the im2col matrix is than L.
    pub ratio: f64,
    /// Workspace that the strips plan, over all threads.
    pub strip: StripWorkspace,
    /// What was measured, if anything was.
    pub measured: Option<Measurements>,
}

/// Workspace that the strips plan for each pass, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripWorkspace {
    /// The forward pass.
    pub forward: u64,
    /// The gradient in the input.
    pub input_gradient: u64,
    /// The gradients in the weight and the bias.
    pub weight_gradient: u64,
}

/// The forward pass of a layer, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    /// The strips, on all threads.
    pub strip: Measurement,
    /// im2col, one image's matrix at a time, on one thread.
    pub im2col: Measurement,
    /// The paper's algorithm, on one thread.
    pub paper: Measurement,
}

/// One forward pass, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Peak beside operands and result, in bytes.
    pub workspace: u64,
    /// Median time of a call, in seconds.
    pub seconds: f64,
}

/// The layers of the catalogue: the paper's twelve in the paper's order, then the others.
pub fn catalogue() -> Vec<Layer> {
    catalogue::layers()
}

/// The layers of the paper's Table 2, in its order.
pub fn table_2() -> Vec<Layer> {
    catalogue().into_iter().filter(|layer| layer.name.starts_with("cv")).collect()
}

/// The catalogue's layer called `name`.
///
/// # Errors
///
/// [`Error::UnknownLayer`].
pub fn layer(name: &str) -> Result<Layer, Error> {
    let layers = catalogue();
    let names: Vec<_> = layers.iter().map(|layer| layer.name.clone()).collect();
    layers
        .into_iter()
        .find(|layer| layer.name == name)
        .ok_or_else(|| Error::UnknownLayer { name: name.to_owned(), names: names.join(", ") })
}

/// Reads layers from the text of a TOML file in the catalogue's format; `origin` names it in errors.
///
/// ```
/// let layers = mec_profile::paper::parse_layers(
///     "layers.toml",
///     r#"
///     [[layer]]
///     name = "stem"
///     input = [224, 224, 3]      # height, width, channels
///     kernel = [7, 7, 64]        # height, width, channels of the output
///     stride = 2
///     padding = 3                # padding, dilation and groups may be left out
///     batch = [1, 32]
///     "#,
/// )?;
/// assert_eq!(layers[0].geometry(1).output_shape(), [1, 64, 112, 112]);
/// # Ok::<(), mec_profile::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::File`] with the line and the field at fault, [`Error::Layer`] for a layer that is no
/// convolution.
pub fn parse_layers(origin: &str, text: &str) -> Result<Vec<Layer>, Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        layer: Vec<Layer>,
    }
    let file: File = crate::toml_file(origin, text)?;
    for layer in &file.layer {
        geometry(layer, 1)?;
    }
    Ok(file.layer)
}

/// `layer` with every stride from 1 to one less than its kernel: the paper's Figure 4 for `cv1`, whose
/// kernel of 11 goes with strides from 1 to 10.
pub fn stride_sweep(layer: &Layer) -> Vec<Layer> {
    let most = layer.kernel[0].min(layer.kernel[1]);
    (1..most.max(2))
        .map(|stride| Layer { name: format!("{}/s{stride}", layer.name), stride, ..layer.clone() })
        .collect()
}

fn geometry(layer: &Layer, batch: usize) -> Result<Geometry, Error> {
    layer.try_geometry(batch).map_err(wrong(layer, batch))
}

fn wrong(layer: &Layer, batch: usize) -> impl Fn(CoreError) -> Error {
    move |reason| Error::Layer { name: layer.name.clone(), batch, reason }
}

/// What `layer` takes at this batch size, by formula and by plan.
///
/// # Errors
///
/// [`Error::Layer`] if that is no convolution, or one too large to address.
pub fn memory(layer: &Layer, batch: usize) -> Result<LayerMemory, Error> {
    let geometry = geometry(layer, batch)?;
    let plan =
        |pass| Plan::new::<f32>(&geometry, pass, &Settings::default()).map_err(wrong(layer, batch));
    let forward = plan(Pass::Forward)?;
    let workspace = |plan: Plan| plan.workspace_bytes as u64;
    let too_large = || wrong(layer, batch)(CoreError::TooLarge { what: "im2col matrix" });
    let bytes = |bytes: u128| u64::try_from(bytes).map_err(|_| too_large());
    Ok(LayerMemory {
        layer: layer.name.clone(),
        batch,
        input: layer.input,
        kernel: layer.kernel,
        stride: layer.stride,
        im2col: bytes(forward.im2col_bytes())?,
        lowered: bytes(forward.lowered_bytes())?,
        saving: i64::try_from(forward.saved_bytes()).map_err(|_| too_large())?,
        ratio: forward.footprint.ratio(),
        strip: StripWorkspace {
            forward: workspace(forward),
            input_gradient: workspace(plan(Pass::InputGradient)?),
            weight_gradient: workspace(plan(Pass::WeightGradient)?),
        },
        measured: None,
    })
}

/// Calls of which the time is the median, and the memory that of the one that took most.
const CALLS: usize = 3;

/// Runs the forward pass of `layer` each way, and measures it.
///
/// # Errors
///
/// As [`memory`].
///
/// # Panics
///
/// If [`PeakAlloc`](crate::PeakAlloc) is not the program's global allocator.
pub fn measurements(layer: &Layer, batch: usize) -> Result<Measurements, Error> {
    let geometry = geometry(layer, batch)?;
    let filled = |shape: [usize; 4]| vec![0.5f32; shape.iter().product()];
    let (x, weight) = (filled(geometry.input_shape()), filled(geometry.weight_shape()));
    let wrong = wrong(layer, batch);
    let x = View::contiguous(&x, geometry.input_shape()).map_err(&wrong)?;
    let weight = View::contiguous(&weight, geometry.weight_shape()).map_err(&wrong)?;
    let timed = |run: &dyn Fn() -> Result<Vec<f32>, CoreError>| -> Result<Measurement, Error> {
        let (mut workspace, mut times) = (0, [0.0; CALLS]);
        for time in &mut times {
            let start = Instant::now();
            let (y, MemoryUse { peak, .. }) = measure(run);
            *time = start.elapsed().as_secs_f64();
            workspace = workspace.max(peak - size_of_val(y.map_err(&wrong)?.as_slice()));
        }
        times.sort_by(f64::total_cmp);
        Ok(Measurement { workspace: workspace as u64, seconds: times[CALLS / 2] })
    };
    Ok(Measurements {
        strip: timed(&|| forward(&geometry, &Settings::default(), &x, &weight, None))?,
        im2col: timed(&|| im2col::forward(&geometry, &x, &weight, None))?,
        paper: timed(&|| paper::forward(&geometry, None, &x, &weight, None))?,
    })
}

/// The sums over ResNet-101 as the paper's Table 3 weighs its layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ResNet101 {
    /// The im2col matrices.
    pub im2col: u64,
    /// The lowered matrices L.
    pub lowered: u64,
    /// How many times more im2col takes.
    pub ratio: f64,
    /// What the strips plan for the forward passes: they are not live together, so the largest one.
    pub strip: u64,
    /// The times, if the layers were measured.
    pub seconds: Option<Seconds>,
}

/// Forward passes, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// With strips.
    pub strip: f64,
    /// With im2col.
    pub im2col: f64,
    /// With the paper's algorithm.
    pub paper: f64,
}

/// Table 3's sums over `layers`, or `None` if one of the table's is not among them.
pub fn resnet_101(layers: &[LayerMemory]) -> Option<ResNet101> {
    let weighted: Vec<_> = RESNET_101
        .into_iter()
        .map(|(name, times)| Some((layers.iter().find(|layer| layer.layer == name)?, times)))
        .collect::<Option<_>>()?;
    let bytes = |of: fn(&LayerMemory) -> u64| -> u64 {
        weighted.iter().map(|(layer, times)| times * of(layer)).sum()
    };
    let seconds = |of: fn(&Measurements) -> Measurement| -> Option<f64> {
        let terms = weighted
            .iter()
            .map(|(layer, times)| Some(*times as f64 * of(layer.measured.as_ref()?).seconds));
        terms.sum()
    };
    let (im2col, lowered) = (bytes(|layer| layer.im2col), bytes(|layer| layer.lowered));
    let times = (seconds(|m| m.strip), seconds(|m| m.im2col), seconds(|m| m.paper));
    Some(ResNet101 {
        im2col,
        lowered,
        ratio: im2col as f64 / lowered as f64,
        strip: weighted.iter().map(|(layer, _)| layer.strip.forward).max()?,
        seconds: match times {
            (Some(strip), Some(im2col), Some(paper)) => Some(Seconds { strip, im2col, paper }),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_2_and_3_are_the_papers() {
        let published = [2.67, 2.67, 3.42, 3.41, 4.17, 2.50, 2.97, 2.95, 2.89, 2.79, 2.57, 2.14];
        let layers = table_2();
        assert_eq!(layers.len(), published.len());
        for (layer, ratio) in layers.iter().zip(published) {
            let ours = memory(layer, 1).unwrap().ratio;
            assert!((ours - ratio).abs() <= 0.005 + 1e-9, "{}: {ours} for {ratio}", layer.name);
        }
        let mut rows: Vec<_> = layers.iter().map(|layer| memory(layer, 1).unwrap()).collect();
        let sums = resnet_101(&rows).unwrap();
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        assert_eq!([mib(sums.im2col), mib(sums.lowered)], ["203.7", "64.6"]);
        assert_eq!(format!("{:.2}", sums.ratio), "3.15");
        assert_eq!(sums.seconds, None);
        for row in &mut rows {
            let call = |seconds| Measurement { workspace: 0, seconds };
            let (strip, im2col, paper) = (call(1.0), call(2.0), call(3.0));
            row.measured = Some(Measurements { strip, im2col, paper });
        }
        let seconds = resnet_101(&rows).unwrap().seconds;
        assert_eq!(seconds, Some(Seconds { strip: 34.0, im2col: 68.0, paper: 102.0 }));
        assert_eq!(resnet_101(&rows[..11]), None);
    }

    #[test]
    fn figure_4_sweeps_the_stride() {
        let sweep = stride_sweep(&layer("cv1").unwrap());
        assert_eq!(sweep.iter().map(|l| l.stride).collect::<Vec<_>>(), Vec::from_iter(1..11));
        let ratios: Vec<_> = sweep.iter().map(|l| memory(l, 1).unwrap().ratio).collect();
        assert!(ratios.is_sorted_by(|a, b| a > b), "the less windows overlap, the less is saved");
    }

    #[test]
    fn mistakes_in_a_layer_file_name_line_and_field() {
        let text = "[[layer]]\nname = \"a\"\ninput = [8, 8, 3]\nkernal = [3, 3, 4]\nstride = 1\n";
        let error = parse_layers("mine.toml", text).unwrap_err().to_string();
        assert!(error.contains("mine.toml, line 4") && error.contains("kernal"), "{error}");
        let text = "[[layer]]\nname = \"a\"\ninput = [8, 8, 3]\nkernel = [9, 3, 4]\nstride = 1\nbatch = [1]";
        let error = parse_layers("mine.toml", text).unwrap_err().to_string();
        assert!(error.contains("layer a") && error.contains("height"), "{error}");
        assert!(layer("cv13").unwrap_err().to_string().contains("cv12"));
    }
}
