//! The quantities of the paper: what each way to lower a convolution takes.

use crate::Geometry;

/// Element counts of a convolution's tensors and of the two lowered matrices, over the whole batch.
///
/// The lowered matrices are those of the literature: im2col copies every kernel-sized patch, MEC
/// copies every column strip. What our own engine holds is far less; see the plan for that.
///
/// ```
/// use mec_core::{ConvOptions, Footprint, Geometry};
/// // The paper's layer cv9: 56x56x64, 3x3, 64 output channels.
/// let geometry = Geometry::new([1, 64, 56, 56], [64, 64, 3, 3], &ConvOptions::default())?;
/// let footprint = Footprint::of(&geometry);
/// assert_eq!(footprint.im2col, 54 * 54 * 3 * 3 * 64);
/// assert_eq!(footprint.lowered, 54 * 56 * 3 * 64);
/// assert_eq!(format!("{:.2}", footprint.ratio()), "2.89");
/// # Ok::<(), mec_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Footprint {
    /// Elements of the input.
    pub input: u128,
    /// Elements of the weight.
    pub weight: u128,
    /// Elements of the output.
    pub output: u128,
    /// Elements of the im2col matrix: `batch * out_h * out_w * kernel_h * kernel_w * channels_in`.
    pub im2col: u128,
    /// Elements of the paper's L: `batch * out_w * in_h * kernel_w * channels_in`, where `in_h`
    /// counts the padding, since L is built from the padded input.
    pub lowered: u128,
}

impl Footprint {
    /// The quantities of `geometry`.
    pub fn of(geometry: &Geometry) -> Self {
        let product = |sizes: &[usize]| sizes.iter().map(|&s| s as u128).product::<u128>();
        let (h, w) = (&geometry.height, &geometry.width);
        let copied_w = [geometry.batch, w.output, w.kernel, geometry.channels_in];
        Self {
            input: product(&geometry.input_shape()),
            weight: product(&geometry.weight_shape()),
            output: product(&geometry.output_shape()),
            im2col: product(&copied_w) * product(&[h.output, h.kernel]),
            lowered: product(&copied_w) * h.padded() as u128,
        }
    }

    /// Elements that L has less than the im2col matrix; negative where it has more.
    ///
    /// The paper's equation for it is
    /// `batch * channels_in * out_w * kernel_w * (out_h - 1) * (kernel_h - stride_h)`. It holds
    /// where the last window ends with the input. L as published also holds the `t` rows that no
    /// window reads, where `stride_h` does not divide `in_h - kernel_h` (the paper's cv4 has one),
    /// and the saving is `batch * channels_in * out_w * kernel_w * t` less. The same goes for
    /// dilation in height, whose kernel rows are further apart. L is the larger one where windows
    /// do not overlap: `stride_h > kernel_h`, or a single output row with a tail.
    pub fn saving(&self) -> i128 {
        self.im2col as i128 - self.lowered as i128
    }

    /// How many times larger the im2col matrix is than L; NaN where both are empty.
    pub fn ratio(&self) -> f64 {
        self.im2col as f64 / self.lowered as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConvOptions;

    fn geometry(input: [usize; 4], weight: [usize; 4], options: ConvOptions) -> Geometry {
        Geometry::new(input, weight, &options).unwrap()
    }

    /// The equation as printed.
    fn equation(g: &Geometry) -> i128 {
        let [n, c, ow, kw, oh, kh, s] = [
            g.batch,
            g.channels_in,
            g.width.output,
            g.width.kernel,
            g.height.output,
            g.height.kernel,
            g.height.stride,
        ]
        .map(|v| v as i128);
        n * c * ow * kw * (oh - 1) * (kh - s)
    }

    #[test]
    fn the_saving_follows_the_papers_equation() {
        for (in_h, stride, pad) in [(9, 1, 0), (9, 2, 0), (7, 2, 1), (12, 3, 0), (13, 4, 1)] {
            let options = ConvOptions {
                stride: [stride, 2],
                padding: [(pad, pad), (1, 0)],
                ..Default::default()
            };
            let g = geometry([3, 4, in_h, 11], [6, 4, 3, 5], options);
            assert_eq!((in_h + 2 * pad - 3) % stride, 0, "no tail");
            assert_eq!(Footprint::of(&g).saving(), equation(&g), "height {in_h}, stride {stride}");
        }
    }

    #[test]
    fn a_tail_of_unread_rows_lessens_the_saving() {
        for tail in 1..4 {
            let options = ConvOptions { stride: [4, 1], ..Default::default() };
            let g = geometry([2, 3, 5 + 3 * 4 + tail, 8], [6, 3, 5, 3], options);
            let unread = (2 * 3 * g.width.output * 3 * tail) as i128;
            assert_eq!(Footprint::of(&g).saving(), equation(&g) - unread);
        }
    }

    #[test]
    fn groups_do_not_change_what_is_copied() {
        let one = geometry([2, 8, 9, 9], [4, 8, 3, 3], ConvOptions::default());
        let four = ConvOptions { groups: 4, ..Default::default() };
        let four = geometry([2, 8, 9, 9], [4, 2, 3, 3], four);
        let (one, four) = (Footprint::of(&one), Footprint::of(&four));
        assert_eq!((one.im2col, one.lowered), (four.im2col, four.lowered));
    }

    #[cfg(feature = "catalogue")]
    #[test]
    fn the_papers_table_2() {
        let published = [2.67, 2.67, 3.42, 3.41, 4.17, 2.50, 2.97, 2.95, 2.89, 2.79, 2.57, 2.14];
        for (i, ratio) in (1..).zip(published) {
            let layer = crate::catalogue::layer(&format!("cv{i}"));
            let ours = Footprint::of(&layer.geometry(1)).ratio();
            assert!((ours - ratio).abs() <= 0.005 + 1e-9, "{}: {ours} for {ratio}", layer.name);
        }
    }

    #[cfg(feature = "catalogue")]
    #[test]
    fn the_papers_resnet_101() {
        let mib = |of: fn(&Footprint) -> u128| {
            [("cv4", 1), ("cv9", 3), ("cv10", 4), ("cv11", 23), ("cv12", 3)]
                .map(|(name, times)| {
                    times * of(&Footprint::of(&crate::catalogue::layer(name).geometry(1)))
                })
                .iter()
                .sum::<u128>() as f64
                * 4.0
                / f64::from(1 << 20)
        };
        assert_eq!(format!("{:.1}", mib(|f| f.im2col)), "203.7");
        assert_eq!(format!("{:.1}", mib(|f| f.lowered)), "64.6");
    }
}
