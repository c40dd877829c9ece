//! Every implementation on every problem: the table and random ones, forward and all gradients.

use mec_core::paper::{self, Solution};
use mec_core::testing::{
    Expected, Layout, Problem, Strided, any_problem, assert_same, expected, problems,
};
use mec_core::{
    Algorithm, ConvOptions, Element, Error, Footprint, Geometry, Pass, Plan, Settings, View,
    bias_gradient, forward, im2col, input_gradient, reference, weight_bias_gradient,
    weight_gradient,
};
use proptest::test_runner::{Config, TestRunner};

const AUTO: Settings = Settings { algorithm: Algorithm::Auto, workspace_limit: None };

/// What sums plainly, and what multiplies less, wherever it can be.
const PLAIN: Settings = Settings { algorithm: Algorithm::Strip, workspace_limit: None };
const WINOGRAD: Settings = Settings { algorithm: Algorithm::Winograd, workspace_limit: None };

/// The four tensors of a problem that a pass reads.
struct Data<T> {
    x: Strided<T>,
    weight: Strided<T>,
    dy: Strided<T>,
    bias: Option<Vec<T>>,
}

impl<T: Element + From<i8>> Data<T> {
    fn new(problem: &Problem, layout: Layout) -> Self {
        let at = |values: &[T], shape| Strided::new(values, shape, layout, T::ZERO);
        Self {
            x: at(&problem.x(), problem.input),
            weight: at(&problem.weights(), problem.weight),
            dy: at(&problem.dy(), problem.geometry().output_shape()),
            bias: problem.bias_values(),
        }
    }
}

/// What the public functions compute.
fn all_passes<T: Element>(
    problem: &Problem,
    settings: &Settings,
    data: &Data<T>,
) -> Result<Expected<T>, Error> {
    let g = problem.geometry();
    let (x, weight, dy) = (data.x.view(), data.weight.view(), data.dy.view());
    let dw = weight_gradient(&g, settings, &x, &dy)?;
    let (dw_too, db) = weight_bias_gradient(&g, settings, &x, &dy)?;
    assert_same(problem, "dw of weight_bias_gradient", &dw_too, &dw);
    Ok(Expected {
        y: forward(&g, settings, &x, &weight, data.bias.as_deref())?,
        dx: input_gradient(&g, settings, &dy, &weight)?,
        dw,
        db,
    })
}

fn assert_all_same<T: Element>(problem: &Problem, got: &Expected<T>, expected: &Expected<T>) {
    assert_same(problem, "y", &got.y, &expected.y);
    assert_same(problem, "dx", &got.dx, &expected.dx);
    assert_same(problem, "dw", &got.dw, &expected.dw);
    assert_same(problem, "db", &got.db, &expected.db);
}

fn check<T: Element + From<i8>>(problem: &Problem) {
    let expected = expected::<T>(problem);
    let data = Data::new(problem, Layout::Contiguous);
    for algorithm in [Algorithm::Auto, Algorithm::Strip, Algorithm::Winograd, Algorithm::Paper] {
        let settings = Settings { algorithm, workspace_limit: None };
        let got = all_passes(problem, &settings, &data)
            .unwrap_or_else(|error| panic!("{problem:?}: {algorithm:?}: {error}"));
        assert_all_same(problem, &got, &expected);
    }
    let db = bias_gradient(&problem.geometry(), &data.dy.view()).unwrap();
    assert_same(problem, "db alone", &db, &expected.db);
    for (name, y) in forwards(&problem.geometry(), &data) {
        assert_same(problem, &format!("y of {name}"), &y, &expected.y);
    }
}

/// The output by every implementation of the forward pass.
fn forwards<T: Element>(g: &Geometry, data: &Data<T>) -> Vec<(&'static str, Vec<T>)> {
    let (x, weight, bias) = (&data.x.view(), &data.weight.view(), data.bias.as_deref());
    let paper = |solution| paper::forward(g, solution, x, weight, bias);
    let mut outputs = vec![
        ("the engine", forward(g, &PLAIN, x, weight, bias)),
        ("the engine, multiplying less", forward(g, &WINOGRAD, x, weight, bias)),
        ("the paper", paper(None)),
        ("the paper, Solution B", paper(Some(Solution::B))),
        ("im2col", im2col::forward(g, x, weight, bias)),
    ];
    let footprint = Footprint::of(g);
    if footprint.output <= footprint.lowered {
        outputs.push(("the paper, Solution A", paper(Some(Solution::A))));
    } else {
        assert_eq!(Solution::of(g), Solution::B, "{g:?}");
        let refused = paper(Some(Solution::A));
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{g:?}: {refused:?}");
    }
    let unwrap = |(name, y): (_, Result<_, Error>)| match y {
        Ok(y) => (name, y),
        Err(error) => panic!("{g:?}: {name}: {error}"),
    };
    outputs.into_iter().map(unwrap).collect()
}

/// Runs `test` on random problems: the same ones every time, `PROPTEST_CASES` of them or 400.
fn for_random_problems(test: impl Fn(&Problem)) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(400);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
        .run(&any_problem(), |problem| {
            test(&problem);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Values in (-1, 1) with all bits of the mantissa in use, so that the order of a sum shows.
fn rough<T: Element + From<f32>>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(2) + 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let unit = |bits: u64| T::from((bits >> 40) as f32 / 8388608.0 - 1.0);
            // The second term fills the mantissa of f64.
            unit(state) + unit(state.rotate_left(23)) * T::from(1e-8)
        })
        .collect()
}

fn rough_data<T: Element + From<f32>>(problem: &Problem) -> Data<T> {
    let len = |shape: [usize; 4]| shape.iter().product();
    let contiguous = |values: &[T], shape| Strided::new(values, shape, Layout::Contiguous, T::ZERO);
    let output = problem.geometry().output_shape();
    Data {
        x: contiguous(&rough(len(problem.input), 1), problem.input),
        weight: contiguous(&rough(len(problem.weight), 2), problem.weight),
        dy: contiguous(&rough(len(output), 3), output),
        bias: problem.bias.then(|| rough(problem.weight[0], 4)),
    }
}

#[test]
fn named_problems() {
    for problem in problems() {
        check::<f32>(&problem);
        check::<f64>(&problem);
    }
}

#[test]
fn random_problems_f32() {
    for_random_problems(check::<f32>);
}

#[test]
fn random_problems_f64() {
    for_random_problems(check::<f64>);
}

#[test]
fn the_layout_of_the_inputs_does_not_matter() {
    for problem in problems() {
        for layout in Layout::ALL.into_iter().filter(|&l| l != Layout::Contiguous) {
            let mut data = Data::<f32>::new(&problem, layout);
            // What lies between the elements must not be read, even if it would be dropped later.
            let g = problem.geometry();
            data.x = Strided::new(&problem.x(), problem.input, layout, f32::NAN);
            data.weight = Strided::new(&problem.weights(), problem.weight, layout, f32::NAN);
            data.dy = Strided::new(&problem.dy(), g.output_shape(), layout, f32::NAN);
            let (x, weight, dy) = (data.x.values(), data.weight.values(), data.dy.values());
            let x = View::contiguous(&x, g.input_shape()).unwrap();
            let weight = View::contiguous(&weight, g.weight_shape()).unwrap();
            let dy = View::contiguous(&dy, g.output_shape()).unwrap();
            let expected = Expected {
                y: reference::forward(&g, &x, &weight, data.bias.as_deref()),
                dx: reference::input_gradient(&g, &dy, &weight),
                dw: reference::weight_gradient(&g, &x, &dy),
                db: reference::bias_gradient(&g, &dy),
            };
            let got = all_passes(&problem, &AUTO, &data)
                .unwrap_or_else(|error| panic!("{problem:?}: {layout:?}: {error}"));
            let mut named = problem.clone();
            named.name = format!("{} ({layout:?})", problem.name);
            assert_all_same(&named, &got, &expected);
            let db = bias_gradient(&g, &data.dy.view()).unwrap();
            assert_same(&named, "db alone", &db, &expected.db);
            for (name, y) in forwards(&g, &data) {
                assert_same(&named, &format!("y of {name}"), &y, &expected.y);
            }
        }
    }
}

#[test]
fn gradients_are_adjoint_to_the_forward_pass() {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for mut problem in problems() {
        problem.bias = false;
        let data = Data::<f64>::new(&problem, Layout::Contiguous);
        let got = all_passes(&problem, &AUTO, &data).unwrap();
        // Whole numbers below 2^53: equality is exact.
        let forward = dot(&got.y, &data.dy.values());
        assert_eq!(forward, dot(&got.dx, &data.x.values()), "{problem:?}: input gradient");
        assert_eq!(forward, dot(&got.dw, &data.weight.values()), "{problem:?}: weight gradient");
    }
}

#[test]
fn f64_is_accurate_to_1e_12() {
    for problem in problems() {
        let data = rough_data::<f64>(&problem);
        let g = problem.geometry();
        let (x, weight, dy) = (data.x.view(), data.weight.view(), data.dy.view());
        let close = |what: &str, got: &[f64], expected: &[f64]| {
            assert_eq!(got.len(), expected.len(), "{problem:?}: {what}");
            let largest = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                // Not `>`: a NaN must fail.
                let near = (got - expected).abs() <= 1e-12 * largest;
                assert!(near, "{problem:?}: {what}[{i}] is {got}, expected {expected}");
            }
        };
        let db = reference::bias_gradient(&g, &dy);
        for settings in [PLAIN, WINOGRAD] {
            let got = all_passes(&problem, &settings, &data).unwrap();
            close("y", &got.y, &reference::forward(&g, &x, &weight, data.bias.as_deref()));
            close("dx", &got.dx, &reference::input_gradient(&g, &dy, &weight));
            close("dw", &got.dw, &reference::weight_gradient(&g, &x, &dy));
            close("db", &got.db, &db);
        }
        close("db alone", &bias_gradient(&g, &dy).unwrap(), &db);
    }
}

/// Fewer multiplications are not bought with accuracy: against f64, no more than twice the plain sum's
/// error, which has nine times as many terms for each of them.
#[test]
fn winograd_rounds_like_the_plain_sum() {
    for (channels, kernel, stride) in [(16, 3, 1), (128, 3, 1), (32, 5, 1), (8, 7, 2), (4, 11, 4)] {
        let input = [1, channels, 24, 24];
        let options = ConvOptions { stride: [stride; 2], ..ConvOptions::default() };
        let g = Geometry::new(input, [16, channels, kernel, kernel], &options).unwrap();
        let len = |shape: [usize; 4]| shape.iter().product();
        let x = rough::<f32>(len(input), 1);
        let weight = rough::<f32>(len(g.weight_shape()), 2);
        let dy = rough::<f32>(len(g.output_shape()), 3);
        let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (wide_x, wide_weight, wide_dy) = (wide(&x), wide(&weight), wide(&dy));
        let view = |values, shape| View::contiguous(values, shape).unwrap();
        let wide_view = |values, shape| View::contiguous(values, shape).unwrap();
        let exact_weight = wide_view(&wide_weight, g.weight_shape());
        let exact = reference::forward(&g, &wide_view(&wide_x, input), &exact_weight, None);
        let exact_dx =
            reference::input_gradient(&g, &wide_view(&wide_dy, g.output_shape()), &exact_weight);
        let error = |result: Result<Vec<f32>, Error>, exact: &[f64]| {
            let pairs = result.unwrap().into_iter().zip(exact);
            let squares: f64 = pairs.map(|(got, exact)| (f64::from(got) - exact).powi(2)).sum();
            (squares / exact.len() as f64).sqrt()
        };
        let (x, weight) = (view(&x, input), view(&weight, g.weight_shape()));
        let dy = view(&dy, g.output_shape());
        let errors = [PLAIN, WINOGRAD].map(|settings| {
            let y = error(forward(&g, &settings, &x, &weight, None), &exact);
            (y, error(input_gradient(&g, &settings, &dy, &weight), &exact_dx))
        });
        let [plain, winograd] = errors;
        assert!(winograd.0 > 0.0 && winograd.0 <= 2.0 * plain.0, "{input:?}: y: {errors:?}");
        assert!(winograd.1 > 0.0 && winograd.1 <= 2.0 * plain.1, "{input:?}: dx: {errors:?}");
        for pass in [Pass::Forward, Pass::InputGradient] {
            let plan = Plan::new::<f32>(&g, pass, &WINOGRAD).unwrap();
            assert_eq!(plan.algorithm, Algorithm::Winograd);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let pools = [1, 2, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for problem in problems() {
        let data = rough_data::<f32>(&problem);
        let (g, dy) = (problem.geometry(), data.dy.view());
        for settings in [AUTO, PLAIN, WINOGRAD] {
            let all = || all_passes(&problem, &settings, &data).unwrap();
            let run = || (all(), bias_gradient(&g, &dy).unwrap());
            let mut results = pools.iter().map(|pool| pool.install(run));
            let (first, first_db) = results.next().unwrap();
            for (other, db) in results {
                assert_all_same(&problem, &other, &first);
                assert_same(&problem, "db alone", &db, &first_db);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_where_the_tensors_lie() {
    for problem in problems() {
        let g = problem.geometry();
        let shapes = [problem.input, problem.weight, g.output_shape()];
        let behind = |gap: usize| {
            let data = [0, 1, 2].map(|n| {
                let mut data = vec![0.0; gap];
                data.extend(rough::<f32>(shapes[n].iter().product(), n as u64));
                data
            });
            let view = |n: usize| View::contiguous(&data[n][gap..], shapes[n]).unwrap();
            let (x, weight, dy) = (view(0), view(1), view(2));
            let y = forward(&g, &AUTO, &x, &weight, None).unwrap();
            let dx = input_gradient(&g, &AUTO, &dy, &weight).unwrap();
            let (dw, db) = weight_bias_gradient(&g, &AUTO, &x, &dy).unwrap();
            Expected { y, dx, dw, db }
        };
        let first = behind(0);
        for gap in [1, 4, 11] {
            assert_all_same(&problem, &behind(gap), &first);
        }
    }
}

/// Writes `value` over an element in the middle of `values`.
fn spoil(values: &mut [f32], value: f32) {
    let middle = values.len() / 2;
    if let Some(v) = values.get_mut(middle) {
        *v = value;
    }
}

#[test]
fn what_is_not_finite_spreads_as_in_the_reference() {
    for problem in problems() {
        let g = problem.geometry();
        let padded = problem.options.padding != [(0, 0); 2];
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut x, mut weight, mut dy) = (problem.x(), problem.weights(), problem.dy());
            let bias = problem.bias_values::<f32>();
            let of = |values: &[f32], shape| Strided::new(values, shape, Layout::Contiguous, 0.0);
            let finite_weight = of(&weight, problem.weight);
            let finite_dy = of(&dy, g.output_shape());
            spoil(&mut x, value);
            spoil(&mut weight, value);
            spoil(&mut dy, value);
            let x = of(&x, problem.input);
            let weight = of(&weight, problem.weight);
            let dy = of(&dy, g.output_shape());

            // Where a tensor that slides over padding is not finite, padding takes part: that is
            // the next test's.
            let weights = if padded { vec![&finite_weight] } else { vec![&finite_weight, &weight] };
            for settings in [PLAIN, WINOGRAD] {
                for &weight in &weights {
                    let (x, weight, bias) = (x.view(), weight.view(), bias.as_deref());
                    let got = forward(&g, &settings, &x, &weight, bias).unwrap();
                    assert_same(&problem, "y", &got, &reference::forward(&g, &x, &weight, bias));
                }
                let (dy, weight) = (dy.view(), finite_weight.view());
                let got = input_gradient(&g, &settings, &dy, &weight).unwrap();
                let want = reference::input_gradient(&g, &dy, &weight);
                assert_same(&problem, "dx", &got, &want);
            }
            let dys = if padded { vec![&finite_dy] } else { vec![&finite_dy, &dy] };
            for dy in dys {
                let (dw, db) = weight_bias_gradient(&g, &AUTO, &x.view(), &dy.view()).unwrap();
                let want = reference::weight_gradient(&g, &x.view(), &dy.view());
                assert_same(&problem, "dw", &dw, &want);
                assert_same(&problem, "db", &db, &reference::bias_gradient(&g, &dy.view()));
            }
        }
    }
}

/// The problem with its padding made part of the input: zeros like any other.
fn materialised(problem: &Problem, x: &[f32]) -> (Geometry, Vec<f32>) {
    let [batch, channels, in_h, in_w] = problem.input;
    let [(top, bottom), (left, right)] = problem.options.padding;
    let (height, width) = (top + in_h + bottom, left + in_w + right);
    let mut padded = vec![0.0; batch * channels * height * width];
    for (i, row) in x.chunks_exact(in_w).enumerate() {
        let (plane, h) = (i / in_h, i % in_h);
        padded[(plane * height + top + h) * width + left..][..in_w].copy_from_slice(row);
    }
    let options = ConvOptions { padding: [(0, 0); 2], ..problem.options.clone() };
    let input = [batch, channels, height, width];
    (Geometry::new(input, problem.weight, &options).unwrap(), padded)
}

/// As in Burn, padding takes part: a NaN in the weight over padding gives NaN.
#[test]
fn a_weight_that_is_not_finite_meets_the_padding_as_zeros() {
    for problem in problems() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut data = Data::<f32>::new(&problem, Layout::Contiguous);
            // The first tap meets the padding before the input, the last that after it.
            let mut weight = problem.weights::<f32>();
            let last = weight.len() - 1;
            (weight[0], weight[last]) = (value, value);
            data.weight = Strided::new(&weight, problem.weight, Layout::Contiguous, 0.0);

            let (padded, x) = materialised(&problem, &problem.x::<f32>());
            let x = View::contiguous(&x, padded.input_shape()).unwrap();
            let expected =
                reference::forward(&padded, &x, &data.weight.view(), data.bias.as_deref());
            for (name, y) in forwards(&problem.geometry(), &data) {
                assert_same(&problem, &format!("y of {name}"), &y, &expected);
            }
        }
    }
}

/// Calls `run` with every limit from far too small to plenty.
fn check_limits<R>(
    problem: &Problem,
    what: &str,
    run: impl Fn(&Settings) -> Result<R, Error>,
    compare: impl Fn(R),
) {
    let with = |bytes| Settings { algorithm: Algorithm::Strip, workspace_limit: Some(bytes) };
    for limit in [0, 1, 1 << 10, 1 << 14, 1 << 18, 1 << 22, usize::MAX] {
        match run(&with(limit)) {
            Ok(result) => compare(result),
            Err(Error::WorkspaceLimit { minimum, limit: named, .. }) => {
                assert_eq!(named, limit, "{problem:?}: {what}");
                assert!(minimum > limit, "{problem:?}: {what}: {limit} refused for {minimum}");
                let result = run(&with(minimum));
                compare(result.unwrap_or_else(|e| panic!("{problem:?}: {what}: {e}")));
                let below = run(&with(minimum - 1)).err();
                let refused = Error::WorkspaceLimit {
                    pass: match what {
                        "y" => mec_core::Pass::Forward,
                        "dx" => mec_core::Pass::InputGradient,
                        _ => mec_core::Pass::WeightGradient,
                    },
                    minimum,
                    limit: minimum - 1,
                };
                assert_eq!(below, Some(refused), "{problem:?}: {what}");
            }
            Err(error) => panic!("{problem:?}: {what} within {limit} bytes: {error}"),
        }
    }
}

#[test]
fn a_workspace_limit_is_kept_or_refused_with_the_minimum() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        for problem in problems() {
            let g = problem.geometry();
            let expected = expected::<f32>(&problem);
            let data = Data::new(&problem, Layout::Contiguous);
            let (x, weight, dy) = (&data.x.view(), &data.weight.view(), &data.dy.view());
            let same = |what: &str, got: Vec<f32>, expected: &[f32]| {
                assert_same(&problem, what, &got, expected);
            };
            check_limits(
                &problem,
                "y",
                |s| forward(&g, s, x, weight, data.bias.as_deref()),
                |y| same("y", y, &expected.y),
            );
            check_limits(
                &problem,
                "dx",
                |s| input_gradient(&g, s, dy, weight),
                |dx| same("dx", dx, &expected.dx),
            );
            check_limits(
                &problem,
                "dw",
                |s| weight_gradient(&g, s, x, dy),
                |dw| same("dw", dw, &expected.dw),
            );
            check_limits(
                &problem,
                "dw, db",
                |s| weight_bias_gradient(&g, s, x, dy),
                |(dw, db)| {
                    same("dw", dw, &expected.dw);
                    same("db", db, &expected.db);
                },
            );
        }
    });
}

#[test]
fn tensors_of_another_shape_are_refused() {
    let problem = problems().into_iter().find(|p| p.name == "plain 3x3").unwrap();
    let g = problem.geometry();
    let data = Data::<f32>::new(&problem, Layout::Contiguous);
    let (x, weight, dy) = (data.x.view(), data.weight.view(), data.dy.view());
    let refused = |result: Result<Vec<f32>, Error>| {
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    };
    refused(forward(&g, &AUTO, &dy, &weight, None));
    refused(forward(&g, &AUTO, &x, &x, None));
    refused(forward(&g, &AUTO, &x, &weight, Some(&[0.0; 3])));
    refused(input_gradient(&g, &AUTO, &x, &weight));
    refused(input_gradient(&g, &AUTO, &dy, &dy));
    refused(weight_gradient(&g, &AUTO, &weight, &dy));
    refused(weight_gradient(&g, &AUTO, &x, &x));
    refused(bias_gradient(&g, &weight));
    refused(paper::forward(&g, None, &dy, &weight, None));
    refused(paper::forward(&g, None, &x, &weight, Some(&[0.0; 3])));
    refused(im2col::forward(&g, &x, &x, None));
    refused(im2col::forward(&g, &x, &weight, Some(&[0.0; 5])));
}
