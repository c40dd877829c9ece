//! Every contender of the bench computes the same passes.

#[path = "../layers/contenders.rs"]
mod contenders;

use std::rc::Rc;

use benches::{Pass, Problem};
use contenders::{NAMES, contender};
use mec_core::{ConvOptions, Geometry};

#[test]
fn agree() {
    let options = ConvOptions { stride: [2; 2], padding: [(1, 1); 2], dilation: [2; 2], groups: 2 };
    let geometry = Geometry::new([3, 4, 17, 15], [32, 2, 3, 2], &options).unwrap();
    let problem = Rc::new(Problem::new(geometry));
    for pass in Pass::ALL {
        let expected = problem.run(pass).unwrap();
        assert_eq!(expected.len(), pass.result_shape(&geometry).iter().product::<usize>());
        for name in NAMES {
            let got = contender(name, &problem).unwrap().call(pass).values();
            assert_eq!(got.len(), expected.len(), "{name} {pass}");
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 1e-4, "{name} {pass}: {got} for {expected}");
            }
        }
    }
    assert!(contender("nobody", &problem).is_none());
}
