//! Digits that the example draws itself, so that a first run needs no network.
//!
//! A digit is a few strokes in a box of about -0.6..0.6 by -1..1 (y down), in the ways people write
//! it. Each image bends the strokes, slants, turns, scales and moves them, draws them anti-aliased
//! with a pen of random width and pressure, and adds noise to the paper.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Image;

/// Height and width of a drawn image, in pixels; the same as MNIST's.
pub const SIZE: usize = 28;

type Point = [f32; 2];

enum Stroke {
    /// Straight lines from point to point.
    Line(&'static [Point]),
    /// A smooth curve through the points.
    Curve(&'static [Point]),
}
use Stroke::{Curve, Line};

/// For each digit, the ways to write it.
const GLYPHS: [&[&[Stroke]]; 10] = [
    &[
        &[Curve(&[
            [0.05, -1.0],
            [-0.45, -0.65],
            [-0.6, 0.0],
            [-0.5, 0.65],
            [0.0, 1.0],
            [0.5, 0.65],
            [0.6, 0.0],
            [0.45, -0.7],
            [-0.05, -1.0],
        ])],
        &[Curve(&[
            [0.3, -0.85],
            [-0.2, -0.95],
            [-0.55, -0.4],
            [-0.5, 0.5],
            [-0.05, 1.0],
            [0.45, 0.6],
            [0.5, -0.3],
            [0.2, -1.0],
        ])],
    ],
    &[
        &[Line(&[[0.0, -1.0], [0.0, 1.0]])],
        &[Line(&[[-0.4, -0.55], [0.05, -1.0], [0.05, 1.0]])],
        &[Line(&[[-0.35, -0.6], [0.05, -1.0], [0.05, 1.0]]), Line(&[[-0.4, 1.0], [0.45, 1.0]])],
    ],
    &[
        &[
            Curve(&[
                [-0.55, -0.55],
                [-0.35, -0.9],
                [0.1, -1.0],
                [0.5, -0.7],
                [0.4, -0.15],
                [0.0, 0.4],
                [-0.6, 1.0],
            ]),
            Line(&[[-0.6, 1.0], [0.6, 1.0]]),
        ],
        &[Curve(&[
            [-0.5, -0.7],
            [0.0, -1.0],
            [0.45, -0.6],
            [0.2, 0.1],
            [-0.3, 0.8],
            [-0.6, 0.8],
            [-0.35, 0.55],
            [0.1, 0.8],
            [0.6, 0.85],
        ])],
    ],
    &[
        &[
            Curve(&[[-0.5, -0.75], [-0.1, -1.0], [0.4, -0.8], [0.35, -0.3], [-0.15, -0.05]]),
            Curve(&[[-0.15, -0.05], [0.4, 0.15], [0.5, 0.6], [0.1, 1.0], [-0.55, 0.8]]),
        ],
        &[
            Line(&[[-0.5, -1.0], [0.5, -1.0], [-0.05, -0.15]]),
            Curve(&[[-0.05, -0.15], [0.45, 0.1], [0.5, 0.6], [0.1, 1.0], [-0.55, 0.85]]),
        ],
    ],
    &[
        &[Line(&[[-0.35, -1.0], [-0.55, 0.25], [0.6, 0.25]]), Line(&[[0.25, -0.6], [0.2, 1.0]])],
        &[Line(&[[0.3, 1.0], [0.3, -1.0], [-0.6, 0.35], [0.6, 0.35]])],
    ],
    &[
        &[
            Line(&[[0.5, -1.0], [-0.4, -1.0], [-0.45, -0.15]]),
            Curve(&[
                [-0.45, -0.15],
                [0.05, -0.35],
                [0.5, 0.0],
                [0.5, 0.6],
                [0.05, 1.0],
                [-0.55, 0.8],
            ]),
        ],
        &[Curve(&[
            [0.5, -0.95],
            [-0.2, -0.95],
            [-0.4, -0.3],
            [0.1, -0.25],
            [0.5, 0.2],
            [0.2, 0.85],
            [-0.5, 0.9],
        ])],
    ],
    &[
        &[Curve(&[
            [0.4, -1.0],
            [-0.2, -0.6],
            [-0.55, 0.1],
            [-0.45, 0.75],
            [0.0, 1.0],
            [0.5, 0.75],
            [0.45, 0.2],
            [0.0, -0.05],
            [-0.45, 0.3],
        ])],
        &[Curve(&[
            [0.05, -1.0],
            [-0.35, -0.2],
            [-0.45, 0.6],
            [0.0, 1.0],
            [0.4, 0.7],
            [0.2, 0.25],
            [-0.3, 0.5],
        ])],
    ],
    &[
        &[Line(&[[-0.55, -1.0], [0.55, -1.0], [-0.1, 1.0]])],
        &[Line(&[[-0.55, -0.95], [0.55, -0.95], [0.0, 1.0]]), Line(&[[-0.2, 0.0], [0.5, 0.0]])],
        &[
            Line(&[[-0.5, -0.65], [-0.5, -1.0], [0.5, -1.0]]),
            Curve(&[[0.5, -1.0], [0.1, 0.0], [-0.1, 1.0]]),
        ],
    ],
    &[
        &[Curve(&[
            [0.0, -0.05],
            [-0.45, -0.4],
            [-0.35, -0.85],
            [0.05, -1.0],
            [0.45, -0.8],
            [0.4, -0.4],
            [0.0, -0.05],
            [-0.5, 0.4],
            [-0.45, 0.85],
            [0.0, 1.0],
            [0.5, 0.8],
            [0.5, 0.35],
            [0.0, -0.05],
        ])],
        &[Curve(&[
            [0.45, -0.75],
            [0.0, -1.0],
            [-0.45, -0.7],
            [0.0, -0.1],
            [0.45, 0.6],
            [0.0, 1.0],
            [-0.45, 0.6],
            [0.05, -0.1],
            [0.45, -0.75],
        ])],
    ],
    &[
        &[
            Curve(&[
                [0.45, -0.5],
                [0.0, -0.05],
                [-0.45, -0.35],
                [-0.35, -0.85],
                [0.1, -1.0],
                [0.45, -0.75],
                [0.45, -0.5],
            ]),
            Curve(&[[0.45, -0.6], [0.4, 0.2], [0.2, 1.0]]),
        ],
        &[Curve(&[
            [0.4, -0.65],
            [0.0, -1.0],
            [-0.45, -0.6],
            [-0.1, -0.1],
            [0.4, -0.5],
            [0.5, 0.2],
            [0.2, 0.9],
            [-0.4, 0.9],
        ])],
    ],
];

/// `count` images of digits, classes in turn (0, 1, ... 9, 0, ...), the same for the same seed.
///
/// Give the training and the held-out set different seeds.
pub fn draw(count: usize, seed: u64) -> Vec<Image> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|i| {
            let label = (i % 10) as u8;
            Image { pixels: draw_digit(label, &mut rng), label }
        })
        .collect()
}

/// One digit, `SIZE * SIZE` bytes row by row, 0 the paper and 255 the ink.
fn draw_digit(digit: u8, rng: &mut StdRng) -> Vec<u8> {
    let variants = GLYPHS[digit as usize];
    let glyph = variants[rng.random_range(0..variants.len())];
    let place = Placement::random(rng);
    let pen = rng.random_range(0.55..1.7);

    // Ink is the largest coverage of a pixel by any segment: where strokes cross it is no darker.
    let mut ink = [0.0f32; SIZE * SIZE];
    for stroke in glyph {
        let points: Vec<Point> = stroke.points().into_iter().map(|p| place.apply(p)).collect();
        for ends in points.windows(2) {
            cover(&mut ink, ends[0], ends[1], pen);
        }
    }

    let pressure = rng.random_range(0.5..1.0);
    let paper = rng.random_range(0.0..0.15);
    let noise = rng.random_range(0.02..0.25);
    ink.iter()
        .map(|&ink| {
            let shade = paper + (pressure - paper) * ink + rng.random_range(-noise..noise);
            (shade.clamp(0.0, 1.0) * 255.0).round() as u8
        })
        .collect()
}

impl Stroke {
    /// The corners of the stroke as a chain of straight segments.
    fn points(&self) -> Vec<Point> {
        /// Segments between two points of a curve: short enough to look round at 28 pixels.
        const STEPS: usize = 6;
        match self {
            Line(points) => {
                // Cut up too, for the bend to act along the line and not only at its corners.
                let cut = |ends: &[Point], t: f32| {
                    std::array::from_fn(|i| lerp(ends[0][i], ends[1][i], t))
                };
                chain(points.len() - 1, STEPS, |i, t| cut(&points[i..], t))
            }
            Curve(points) => {
                let at = |i: isize| points[i.clamp(0, points.len() as isize - 1) as usize];
                chain(points.len() - 1, STEPS, |i, t| {
                    let i = i as isize;
                    catmull_rom([at(i - 1), at(i), at(i + 1), at(i + 2)], t)
                })
            }
        }
    }
}

/// The points `at(part, t)` for t in `steps` steps from 0 to 1, over all parts, the last included.
fn chain(parts: usize, steps: usize, at: impl Fn(usize, f32) -> Point) -> Vec<Point> {
    let inner = (0..parts * steps).map(|i| at(i / steps, (i % steps) as f32 / steps as f32));
    inner.chain([at(parts - 1, 1.0)]).collect()
}

fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// The point at `t` in 0..1 between `p[1]` and `p[2]` of a uniform Catmull-Rom spline.
fn catmull_rom(p: [Point; 4], t: f32) -> Point {
    std::array::from_fn(|i| {
        let [a, b, c, d] = p.map(|point| point[i]);
        let slopes = (c - a) * t + (2.0 * a - 5.0 * b + 4.0 * c - d) * t * t;
        b + 0.5 * (slopes + (3.0 * b - a - 3.0 * c + d) * t * t * t)
    })
}

/// Where a point of the glyph's box goes in the image: a bend, then an affine map to pixels.
struct Placement {
    bend: [[f32; 2]; 2], // for x and y: how far, and the phase
    matrix: [[f32; 2]; 2],
    centre: Point,
}

impl Placement {
    fn random(rng: &mut StdRng) -> Self {
        let (sin, cos) = rng.random_range(-0.35f32..0.35).sin_cos();
        let shear: f32 = rng.random_range(-0.35..0.35);
        let half = SIZE as f32 / 2.0;
        let width = half * rng.random_range(0.45..0.85);
        let height = half * rng.random_range(0.5..0.8);
        let turn = std::f32::consts::TAU;
        let mut bend = || [rng.random_range(0.0..0.16), rng.random_range(0.0..turn)];
        Self {
            bend: [bend(), bend()],
            // Rotation * (shear * scale).
            matrix: [
                [cos * width, (cos * -shear - sin) * height],
                [sin * width, (sin * -shear + cos) * height],
            ],
            centre: [half + rng.random_range(-3.0..3.0), half + rng.random_range(-3.0..3.0)],
        }
    }

    fn apply(&self, [x, y]: Point) -> Point {
        let [[bend_x, phase_x], [bend_y, phase_y]] = self.bend;
        let x_bent = x + bend_x * (2.5 * y + phase_x).sin();
        let y_bent = y + bend_y * (3.0 * x + phase_y).sin();
        std::array::from_fn(|i| {
            self.centre[i] + self.matrix[i][0] * x_bent + self.matrix[i][1] * y_bent
        })
    }
}

/// Draws the segment from `a` to `b` (pixels) with a round pen of radius `pen`.
///
/// A pixel's coverage falls from 1 to 0 over the pixel that the pen's edge crosses.
fn cover(ink: &mut [f32; SIZE * SIZE], a: Point, b: Point, pen: f32) {
    let reach = pen + 0.5;
    let range = |i: usize| {
        let low = (a[i].min(b[i]) - reach).floor().clamp(0.0, SIZE as f32) as usize;
        let high = (a[i].max(b[i]) + reach).ceil().clamp(0.0, SIZE as f32) as usize;
        low..high
    };
    let along = [b[0] - a[0], b[1] - a[1]];
    let length_squared = (along[0] * along[0] + along[1] * along[1]).max(f32::MIN_POSITIVE);
    for row in range(1) {
        for column in range(0) {
            let from_a = [column as f32 + 0.5 - a[0], row as f32 + 0.5 - a[1]];
            let t = (from_a[0] * along[0] + from_a[1] * along[1]) / length_squared;
            let t = t.clamp(0.0, 1.0);
            let distance = (from_a[0] - t * along[0]).hypot(from_a[1] - t * along[1]);
            let pixel = &mut ink[row * SIZE + column];
            *pixel = pixel.max((reach - distance).clamp(0.0, 1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_images_other_seed_other_images() {
        assert_eq!(draw(30, 1), draw(30, 1));
        assert_ne!(draw(30, 1), draw(30, 2));
        assert_eq!(draw(30, 1)[..10], draw(10, 1)[..], "more images begin with the same ones");
    }

    #[test]
    fn classes_come_in_turn_and_every_image_shows_ink() {
        for (i, image) in draw(500, 3).iter().enumerate() {
            assert_eq!(image.label as usize, i % 10);
            assert_eq!(image.pixels.len(), SIZE * SIZE);
            // The faintest pen presses with 0.5, the loudest noise takes 0.25 of it.
            let dark = image.pixels.iter().filter(|&&p| p > 100).count();
            assert!((12..SIZE * SIZE / 2).contains(&dark), "image {i} has {dark} dark pixels");
        }
    }

    #[test]
    fn a_segment_covers_what_lies_under_the_pen() {
        let mut ink = [0.0; SIZE * SIZE];
        cover(&mut ink, [5.5, 10.5], [20.5, 10.5], 1.0);
        assert_eq!(ink[10 * SIZE + 5], 1.0);
        assert_eq!(ink[11 * SIZE + 12], 0.5, "the pen's edge runs through this pixel's centre");
        assert_eq!(ink[12 * SIZE + 12], 0.0);
        assert_eq!(ink[10 * SIZE + 23], 0.0);
    }

    #[test]
    fn a_curve_passes_through_its_points() {
        let points: &[Point] = &[[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]];
        let drawn = Curve(points).points();
        for point in points {
            assert!(drawn.contains(point), "{point:?} is not among {drawn:?}");
        }
    }
}
