//! The suite of problems every implementation is held to, through Burn's tensors: forward and all
//! gradients, exactly.

mod common;

use burn::tensor::DType;
use common::{Case, MEC, all_devices};
use mec_core::testing::{assert_same, expected, problems};

#[test]
fn suite() {
    for device in all_devices() {
        for problem in problems().iter() {
            let expected = expected::<f64>(problem);
            let got = Case::integers(problem).run(MEC, &device, DType::F32);
            assert_same(problem, "y", &got.y, &expected.y);
            assert_same(problem, "dx", &got.dx, &expected.dx);
            assert_same(problem, "dw", &got.dw, &expected.dw);
            if let Some(db) = got.db {
                assert_same(problem, "db", &db, &expected.db);
            }
        }
    }
}
