//! Images with labels, from a drawing or from the original files of MNIST and CIFAR-10.

mod cifar;
mod digits;
mod idx;

use std::path::{Path, PathBuf};

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::{Device, Int, Tensor, TensorData};
use thiserror::Error;

use crate::args::{Args, DatasetKind};
pub use cifar::SOURCE as CIFAR10_SOURCE;

/// Classes in each of the datasets.
pub const CLASSES: usize = 10;

/// An image and what it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Channel by channel, row by row.
    pub pixels: Vec<u8>,
    /// Less than [`CLASSES`].
    pub label: u8,
}

/// Images to train on, and others held out to test on.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Channels, height and width of every image.
    pub shape: [usize; 3],
    pub train: Vec<Image>,
    pub test: Vec<Image>,
}

/// Why there are no images.
#[derive(Error, Debug)]
pub enum DataError {
    #[error("{path} is missing: expected {expected}. Get it from {source_url}")]
    Missing { path: PathBuf, expected: String, source_url: &'static str },
    #[error("{path} cannot be read ({error}): expected {expected}. Get it from {source_url}")]
    Unreadable { path: PathBuf, error: std::io::Error, expected: String, source_url: &'static str },
    #[error(
        "{path} is damaged: expected {expected}, found {found}. Get it again from {source_url}"
    )]
    Damaged { path: PathBuf, expected: String, found: String, source_url: &'static str },
    #[error(
        "MNIST could not be downloaded ({reason}). Get its four files from {} and give their \
         directory with --data-dir; or if an earlier download broke off, remove burn-dataset/mnist \
         from your cache directory and try again",
        idx::SOURCE
    )]
    Download { reason: String },
}

/// Draws or reads what `args` asks for.
pub fn load(args: &Args) -> Result<Data, DataError> {
    let mut data = match (args.dataset, &args.data_dir) {
        (DatasetKind::Digits, _) => digits_for(args),
        (DatasetKind::Mnist, Some(dir)) => idx::read(dir)?,
        (DatasetKind::Mnist, None) => idx::download()?,
        (DatasetKind::Cifar10, dir) => cifar::read(dir.as_deref().unwrap_or(Path::new(".")))?,
    };
    data.train.truncate(args.train_size.map_or(usize::MAX, |size| size.get()));
    data.test.truncate(args.test_size.map_or(usize::MAX, |size| size.get()));
    Ok(data)
}

fn digits_for(args: &Args) -> Data {
    let train = args.train_size.map_or(10_000, |size| size.get());
    let test = args.test_size.map_or(2_000, |size| size.get());
    Data {
        shape: [1, digits::SIZE, digits::SIZE],
        train: digits::draw(train, args.seed),
        // Any other seed would do; the complement is no seed that a user counts up to.
        test: digits::draw(test, !args.seed),
    }
}

/// Images as the model takes them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, channels, height, width]`, each channel with mean 0 and deviation 1.
    pub images: Tensor<4>,
    /// `[batch]`, each less than [`CLASSES`].
    pub labels: Tensor<1, Int>,
}

/// Makes batches, scaled by what is usual in the training images.
#[derive(Clone, Debug)]
pub struct ImageBatcher {
    shape: [usize; 3],
    /// For each channel, the value of each byte.
    scaled: Vec<[f32; 256]>,
}

impl ImageBatcher {
    /// A batcher for `data`, with the mean and deviation of each channel in `data.train`.
    pub fn new(data: &Data) -> Self {
        let [channels, height, width] = data.shape;
        let scaled = (0..channels)
            .map(|channel| {
                let mut counts = [0u64; 256];
                for image in &data.train {
                    let start = channel * height * width;
                    for &byte in &image.pixels[start..start + height * width] {
                        counts[byte as usize] += 1;
                    }
                }
                scale(&counts)
            })
            .collect();
        Self { shape: data.shape, scaled }
    }
}

/// For each byte, how many deviations it lies off the mean of the bytes counted.
fn scale(counts: &[u64; 256]) -> [f32; 256] {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    let mean_of = |value: &dyn Fn(f64) -> f64| {
        let sum: f64 = counts.iter().enumerate().map(|(b, &n)| n as f64 * value(b as f64)).sum();
        sum / total
    };
    let mean = mean_of(&|byte| byte);
    let deviation = mean_of(&|byte| (byte - mean).powi(2)).sqrt().max(1.0);
    std::array::from_fn(|byte| ((byte as f64 - mean) / deviation) as f32)
}

impl Batcher<Image, Batch> for ImageBatcher {
    fn batch(&self, items: Vec<Image>, device: &Device) -> Batch {
        let [channels, height, width] = self.shape;
        let mut values = Vec::with_capacity(items.len() * channels * height * width);
        for image in &items {
            for (plane, scaled) in image.pixels.chunks_exact(height * width).zip(&self.scaled) {
                values.extend(plane.iter().map(|&byte| scaled[byte as usize]));
            }
        }
        let labels: Vec<i64> = items.iter().map(|image| image.label.into()).collect();
        let shape = [items.len(), channels, height, width];
        Batch {
            images: Tensor::from_data(TensorData::new(values, shape), device),
            labels: Tensor::from_data(TensorData::new(labels, [items.len()]), device),
        }
    }
}

/// The bytes of `path`, or an error that says what it should hold and where to get it.
fn read_file(
    path: PathBuf,
    expected: &str,
    source_url: &'static str,
) -> Result<Vec<u8>, DataError> {
    let expected = expected.to_owned();
    std::fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing { path, expected, source_url },
        _ => DataError::Unreadable { path, error, expected, source_url },
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An empty directory of this test run's own, removed when dropped.
    pub struct TempDir(pub PathBuf);

    impl TempDir {
        pub fn new(name: &str) -> Self {
            let unique = format!("train-cnn-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(unique);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub fn write(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.0.join(name), bytes).unwrap();
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            // Nothing to do about a directory that does not go; the test's own result stands.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn digits_follow_the_seed_and_the_sizes() {
        let load = |line: &str| load(&Args::from_line(line).unwrap()).unwrap();
        let data = load("--seed 5 --train-size 40 --test-size 20");
        assert_eq!((data.train.len(), data.test.len()), (40, 20));
        assert_eq!(data, load("--seed 5 --train-size 40 --test-size 20"));
        assert_ne!(data, load("--seed 6 --train-size 40 --test-size 20"));
        assert!(data.test.iter().all(|image| !data.train.contains(image)), "held out");
    }

    #[test]
    fn a_batch_has_images_by_channel_with_mean_0_and_deviation_1() {
        let image = |a: u8, b: u8, label| Image { pixels: vec![a, a, b, b], label };
        let train = vec![image(10, 100, 3), image(30, 140, 9)];
        let data = Data { shape: [2, 1, 2], test: vec![], train: train.clone() };
        let batch = ImageBatcher::new(&data).batch(train, &Device::flex());
        assert_eq!(batch.images.dims(), [2, 2, 1, 2]);
        let values: Vec<f32> = batch.images.into_data().try_into_vec().unwrap();
        assert_eq!(values, [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]);
        let labels: Vec<i64> = batch.labels.into_data().iter::<i64>().collect();
        assert_eq!(labels, [3, 9]);
    }

    #[test]
    fn images_of_one_colour_do_not_divide_by_zero() {
        let mut counts = [0; 256];
        counts[7] = 12;
        assert_eq!(scale(&counts)[7], 0.0);
        assert!(scale(&counts).iter().all(|value| value.is_finite()));
    }
}
