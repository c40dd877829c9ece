//! The definition of convolution and of its gradients, as nested loops.
//!
//! Slow and obvious on purpose: every other implementation is compared with this one. It is never
//! optimised. Sums run in the order batch, channel, kernel row, kernel column.

use crate::{Element, Geometry, View};

/// Calls `f(n, oc, oh, ow, c, ih, iw, kh, kw)` for every multiply-add that does not fall on padding;
/// `c` counts the input channels of all groups.
fn for_each_product(g: &Geometry, mut f: impl FnMut([usize; 4], [usize; 4], [usize; 4])) {
    let [n, oc, oh, ow] = g.output_shape();
    let [_, group_c, kh, kw] = g.weight_shape();
    let group_oc = g.channels_out / g.groups;
    for n in 0..n {
        for oc in 0..oc {
            for c in 0..group_c {
                for y in 0..oh {
                    for x in 0..ow {
                        for ky in 0..kh {
                            for kx in 0..kw {
                                let (a, b) = (&g.height, &g.width);
                                let ih = (y * a.stride + ky * a.dilation).checked_sub(a.pad_before);
                                let iw = (x * b.stride + kx * b.dilation).checked_sub(b.pad_before);
                                if let (Some(ih), Some(iw)) = (ih, iw)
                                    && ih < a.input
                                    && iw < b.input
                                {
                                    let channel = oc / group_oc * group_c + c;
                                    f([n, oc, y, x], [n, channel, ih, iw], [oc, c, ky, kx]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn offset([_, b, c, d]: [usize; 4], [i, j, k, l]: [usize; 4]) -> usize {
    ((i * b + j) * c + k) * d + l
}

fn zeros<T: Element>(shape: [usize; 4]) -> Vec<T> {
    vec![T::ZERO; shape.iter().product()]
}

/// `y[n,oc,h,w] = bias[oc] + sum x * weight`, row-major `[batch, channels_out, out_h, out_w]`.
pub fn forward<T: Element>(
    g: &Geometry,
    x: &View<T>,
    weight: &View<T>,
    bias: Option<&[T]>,
) -> Vec<T> {
    let shape = g.output_shape();
    let plane = shape[2] * shape[3];
    let mut y = zeros::<T>(shape);
    for (i, y) in y.iter_mut().enumerate() {
        *y = bias.map_or(T::ZERO, |b| b[i / plane % shape[1]]);
    }
    for_each_product(g, |out, input, w| {
        let y = &mut y[offset(shape, out)];
        *y = *y + x.at(input) * weight.at(w);
    });
    y
}

/// The gradient of `sum(y * dy)` in the input, row-major `[batch, channels_in, height, width]`.
pub fn input_gradient<T: Element>(g: &Geometry, dy: &View<T>, weight: &View<T>) -> Vec<T> {
    let shape = g.input_shape();
    let mut dx = zeros::<T>(shape);
    for_each_product(g, |out, input, w| {
        let dx = &mut dx[offset(shape, input)];
        *dx = *dx + dy.at(out) * weight.at(w);
    });
    dx
}

/// The gradient of `sum(y * dy)` in the weight, row-major, of [`Geometry::weight_shape`].
pub fn weight_gradient<T: Element>(g: &Geometry, x: &View<T>, dy: &View<T>) -> Vec<T> {
    let shape = g.weight_shape();
    let mut dw = zeros::<T>(shape);
    for_each_product(g, |out, input, w| {
        let dw = &mut dw[offset(shape, w)];
        *dw = *dw + dy.at(out) * x.at(input);
    });
    dw
}

/// The gradient of `sum(y * dy)` in the bias, `[channels_out]`.
pub fn bias_gradient<T: Element>(g: &Geometry, dy: &View<T>) -> Vec<T> {
    let [n, oc, oh, ow] = g.output_shape();
    let mut db = vec![T::ZERO; oc];
    for n in 0..n {
        for (oc, db) in db.iter_mut().enumerate() {
            for y in 0..oh {
                for x in 0..ow {
                    *db = *db + dy.at([n, oc, y, x]);
                }
            }
        }
    }
    db
}
