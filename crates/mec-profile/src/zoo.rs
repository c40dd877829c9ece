//! The networks that are built in.

use crate::Error;
use crate::model::{Conv, Layer, Model, Pool, Residual};

/// A network that is built in.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn {
    /// What the command calls it.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Height and width of an image, unless another size is asked for.
    pub size: usize,
    channels: usize,
    layers: fn() -> Vec<Layer>,
}

/// Every network that is built in, small ones first.
pub const BUILT_IN: [BuiltIn; 7] = [
    BuiltIn {
        name: "cnn",
        about: "the example's: three blocks of convolution, ReLU and max-pool, two linear layers",
        size: 28,
        channels: 1,
        layers: cnn,
    },
    BuiltIn {
        name: "lenet5",
        about: "LeNet-5 with ReLU and max-pool",
        size: 32,
        channels: 1,
        layers: lenet5,
    },
    BuiltIn { name: "vgg11", about: "VGG-11", size: 224, channels: 3, layers: vgg11 },
    BuiltIn {
        name: "resnet18",
        about: "ResNet-18, two 3x3 convolutions in a block",
        size: 224,
        channels: 3,
        layers: || resnet(basic, 1, [2, 2, 2, 2]),
    },
    BuiltIn {
        name: "resnet101",
        about: "ResNet-101, a 3x3 convolution between two 1x1 in a block",
        size: 224,
        channels: 3,
        layers: || resnet(bottleneck, 4, [3, 4, 23, 3]),
    },
    BuiltIn {
        name: "mobilenet",
        about: "MobileNet v1: a depthwise 3x3 and a 1x1 convolution in a block",
        size: 224,
        channels: 3,
        layers: mobilenet,
    },
    BuiltIn {
        name: "cifar",
        about: "a plain CNN for 32x32 images: six 3x3 convolutions with ReLU, three max-pools",
        size: 32,
        channels: 3,
        layers: cifar,
    },
];

impl Model {
    /// The network called `name`, for images of `size` pixels squared or of its own size.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownModel`]; [`Error::Model`] if the images are too small for it.
    pub fn built_in(name: &str, size: Option<usize>) -> Result<Self, Error> {
        let Some(found) = BUILT_IN.iter().find(|built_in| built_in.name == name) else {
            let names = BUILT_IN.map(|built_in| built_in.name).join(", ");
            return Err(Error::UnknownModel { name: name.to_owned(), names });
        };
        let size = size.unwrap_or(found.size);
        Model {
            name: name.to_owned(),
            input: [found.channels, size, size],
            layers: (found.layers)(),
        }
        .checked()
    }
}

fn conv(out: usize, kernel: usize) -> Conv {
    Conv { out, kernel, stride: 1, padding: kernel / 2, dilation: 1, groups: 1, bias: true }
}

fn pool(kernel: usize, stride: usize) -> Layer {
    Layer::MaxPool(Pool { kernel, stride, padding: 0 })
}

/// Classes of ImageNet, and of the digits and CIFAR-10.
const MANY: usize = 1000;
const FEW: usize = 10;

fn cnn() -> Vec<Layer> {
    let block = |out| [Layer::Conv(conv(out, 3)), Layer::Relu, pool(2, 2)];
    let mut layers: Vec<_> = [16, 32, 64].into_iter().flat_map(block).collect();
    layers.extend([Layer::Linear(128), Layer::Relu, Layer::Linear(FEW)]);
    layers
}

fn cifar() -> Vec<Layer> {
    let two = |out| {
        let conv = || [Layer::Conv(conv(out, 3)), Layer::Relu];
        conv().into_iter().chain(conv()).chain([pool(2, 2)]).collect::<Vec<_>>()
    };
    let mut layers: Vec<_> = [32, 64, 128].into_iter().flat_map(two).collect();
    layers.push(Layer::Linear(FEW));
    layers
}

fn lenet5() -> Vec<Layer> {
    let conv = |out| Layer::Conv(Conv { padding: 0, ..conv(out, 5) });
    vec![
        conv(6),
        Layer::Relu,
        pool(2, 2),
        conv(16),
        Layer::Relu,
        pool(2, 2),
        Layer::Linear(120),
        Layer::Relu,
        Layer::Linear(84),
        Layer::Relu,
        Layer::Linear(FEW),
    ]
}

fn vgg11() -> Vec<Layer> {
    let mut layers = vec![];
    for outs in [&[64][..], &[128], &[256, 256], &[512, 512], &[512, 512]] {
        for &out in outs {
            layers.extend([Layer::Conv(conv(out, 3)), Layer::Relu]);
        }
        layers.push(pool(2, 2));
    }
    layers.extend([
        Layer::Linear(4096),
        Layer::Relu,
        Layer::Linear(4096),
        Layer::Relu,
        Layer::Linear(MANY),
    ]);
    layers
}

/// A convolution without bias, and batch normalization.
fn normalized(conv: Conv) -> [Layer; 2] {
    [Layer::Conv(Conv { bias: false, ..conv }), Layer::BatchNorm]
}

/// The main branch of ResNet-18's block of `width` channels.
fn basic(width: usize, stride: usize) -> Vec<Layer> {
    let first = normalized(Conv { stride, ..conv(width, 3) });
    let second = normalized(conv(width, 3));
    first.into_iter().chain([Layer::Relu]).chain(second).collect()
}

/// The main branch of ResNet-101's block: `width` channels inside, four times as many outside.
fn bottleneck(width: usize, stride: usize) -> Vec<Layer> {
    let narrow = normalized(conv(width, 1));
    let middle = normalized(Conv { stride, ..conv(width, 3) });
    let wide = normalized(conv(4 * width, 1));
    narrow.into_iter().chain([Layer::Relu]).chain(middle).chain([Layer::Relu]).chain(wide).collect()
}

/// He et al. (2015), Table 1. A block that changes the shape has a 1x1 convolution beside it.
fn resnet(
    body: fn(usize, usize) -> Vec<Layer>,
    expansion: usize,
    blocks: [usize; 4],
) -> Vec<Layer> {
    let stem = normalized(Conv { stride: 2, ..conv(64, 7) });
    let mut layers: Vec<_> = stem.into_iter().chain([Layer::Relu]).collect();
    layers.push(Layer::MaxPool(Pool { kernel: 3, stride: 2, padding: 1 }));
    let mut channels = 64;
    for (stage, blocks) in blocks.into_iter().enumerate() {
        let width = 64 << stage;
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let out = width * expansion;
            let same = stride == 1 && channels == out;
            let shortcut =
                if same { vec![] } else { normalized(Conv { stride, ..conv(out, 1) }).to_vec() };
            layers.push(Layer::Residual(Residual { body: body(width, stride), shortcut }));
            layers.push(Layer::Relu);
            channels = out;
        }
    }
    layers.extend([Layer::GlobalAvgPool, Layer::Linear(MANY)]);
    layers
}

/// Howard et al. (2017), Table 1.
fn mobilenet() -> Vec<Layer> {
    let mut layers: Vec<_> = normalized(Conv { stride: 2, ..conv(32, 3) }).to_vec();
    layers.push(Layer::Relu);
    let mut channels = 32;
    let blocks = [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        (512, 1),
        (512, 1),
        (512, 1),
        (512, 1),
        (512, 1),
        (1024, 2),
        (1024, 1),
    ];
    for (out, stride) in blocks {
        let depthwise = normalized(Conv { stride, groups: channels, ..conv(channels, 3) });
        let pointwise = normalized(conv(out, 1));
        layers.extend(depthwise.into_iter().chain([Layer::Relu]));
        layers.extend(pointwise.into_iter().chain([Layer::Relu]));
        channels = out;
    }
    layers.extend([Layer::GlobalAvgPool, Layer::Linear(MANY)]);
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use mec_core::catalogue::layer;

    #[test]
    fn parameters_are_those_of_the_papers() {
        // Published counts: torchvision's models; LeNet-5 with dense second convolution.
        for (name, parameters) in [
            ("lenet5", 61_706),
            ("vgg11", 132_863_336),
            ("resnet18", 11_689_512),
            ("resnet101", 44_549_160),
            ("mobilenet", 4_231_976),
        ] {
            assert_eq!(Model::built_in(name, None).unwrap().parameters(), parameters, "{name}");
        }
    }

    /// ResNet-101's 3x3 convolutions are the layers that the paper's Table 3 counts, but for
    /// padding, which the paper leaves out, and the strided one that begins each stage.
    #[test]
    fn resnet_101_has_the_convolutions_of_table_3() {
        let convolutions = Model::built_in("resnet101", None).unwrap().convolutions(1);
        for (name, times) in [("cv9", 3), ("cv10", 4), ("cv11", 23), ("cv12", 3)] {
            let expected = layer(name).geometry(1);
            let count = convolutions
                .iter()
                .filter(|g| g.height.kernel == 3)
                .filter(|g| g.height.output == expected.height.input)
                .filter(|g| g.weight_shape() == expected.weight_shape())
                .count();
            assert_eq!(count, times, "{name}");
        }
    }

    #[test]
    fn images_that_are_too_small_are_refused() {
        let error = Model::built_in("lenet5", Some(8)).unwrap_err().to_string();
        assert!(error.contains("lenet5") && error.contains("layer 4"), "{error}");
        assert!(Model::built_in("resnet", None).unwrap_err().to_string().contains("resnet18"));
    }
}
