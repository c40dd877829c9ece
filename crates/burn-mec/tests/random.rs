//! Random geometries against the reference, through Burn's tensors: forward and all gradients,
//! exactly.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device};
use common::{Case, MEC, devices};
use mec_core::testing::{Problem, any_problem, assert_same, expected};
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

fn check(problem: &Problem, devices: &[Device]) {
    let expected = expected::<f64>(problem);
    for device in devices {
        let got = Case::integers(problem).run(MEC, device, DType::F32);
        assert_same(problem, "y", &got.y, &expected.y);
        assert_same(problem, "dx", &got.dx, &expected.dx);
        assert_same(problem, "dw", &got.dw, &expected.dw);
        assert_eq!(got.db.is_some(), problem.bias, "{problem:?}");
        if let Some(db) = got.db {
            assert_same(problem, "db", &db, &expected.db);
        }
    }
}

/// The same problems every time, `PROPTEST_CASES` of them or 400, each on every backend.
#[test]
fn random_problems() {
    let devices = devices();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(400);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
        .run(&any_problem(), |problem| {
            // What the check panics with is printed; proptest then looks for a smaller problem.
            catch_unwind(AssertUnwindSafe(|| check(&problem, &devices)))
                .map_err(|_| TestCaseError::fail("see the last message above"))
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
