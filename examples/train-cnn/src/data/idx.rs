//! MNIST, in the IDX format of its original files.
//!
//! An IDX file is big-endian: a magic number (here 0x0000_08NN, bytes in NN dimensions), the size of
//! each dimension as u32, then the bytes.

use std::io::Read;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use burn::data::dataset::Dataset;
use burn::data::dataset::vision::MnistDataset;
use flate2::read::MultiGzDecoder;

use super::{CLASSES, Data, DataError, Image, read_file};

/// Where the original files are.
pub const SOURCE: &str = "https://storage.googleapis.com/cvdf-datasets/mnist/";

const SIZE: usize = 28;

/// Reads the four files of MNIST in `dir`, each as it is or gzipped.
pub fn read(dir: &Path) -> Result<Data, DataError> {
    Ok(Data {
        shape: [1, SIZE, SIZE],
        train: read_split(dir, "train")?,
        test: read_split(dir, "t10k")?,
    })
}

/// Gets MNIST through burn-dataset, which downloads it once and keeps it in the user's cache.
pub fn download() -> Result<Data, DataError> {
    // burn-dataset panics where a download fails or a cached file is broken. The message goes into
    // our error instead of the terminal.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let sets = catch_unwind(|| (MnistDataset::train(), MnistDataset::test()));
    std::panic::set_hook(hook);

    let (train, test) = sets.map_err(|panic| DataError::Download {
        reason: match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (_, Some(text)) => text.to_string(),
            _ => "for an unknown reason".to_owned(),
        },
    })?;
    Ok(Data { shape: [1, SIZE, SIZE], train: images_of(&train), test: images_of(&test) })
}

fn images_of(set: &MnistDataset) -> Vec<Image> {
    set.iter()
        .map(|item| {
            let item = item.expect("burn-dataset holds MNIST in memory");
            Image {
                pixels: item.image.as_flattened().iter().map(|&pixel| pixel as u8).collect(),
                label: item.label,
            }
        })
        .collect()
}

fn read_split(dir: &Path, split: &str) -> Result<Vec<Image>, DataError> {
    let images = IdxFile::read(dir, &format!("{split}-images-idx3-ubyte"), 3)?;
    let labels = IdxFile::read(dir, &format!("{split}-labels-idx1-ubyte"), 1)?;

    let [count, height, width] = images.sizes[..] else {
        unreachable!("three dimensions were asked for")
    };
    if (height, width) != (SIZE, SIZE) || count == 0 {
        let found = format!("{count} images of {height}x{width}");
        return Err(images.damaged(&format!("images of {SIZE}x{SIZE}"), &found));
    }
    if labels.sizes[0] != count {
        let expected = format!("{count} labels, as many as images");
        return Err(labels.damaged(&expected, &labels.sizes[0].to_string()));
    }
    if let Some(label) = labels.values().iter().find(|&&label| label as usize >= CLASSES) {
        return Err(labels.damaged("labels from 0 to 9", &format!("the label {label}")));
    }
    Ok(images
        .values()
        .chunks_exact(SIZE * SIZE)
        .zip(labels.values())
        .map(|(pixels, &label)| Image { pixels: pixels.to_vec(), label })
        .collect())
}

/// An IDX file whose length is what its header says.
struct IdxFile {
    path: PathBuf,
    sizes: Vec<usize>,
    bytes: Vec<u8>,
}

impl IdxFile {
    /// Reads `dir/name`, or `dir/name.gz` where that is all there is.
    fn read(dir: &Path, name: &str, dimensions: usize) -> Result<Self, DataError> {
        let gzipped = dir.join(format!("{name}.gz"));
        let plain = dir.join(name);
        let path = if gzipped.exists() && !plain.exists() { gzipped } else { plain };
        let expected = format!("an IDX file of bytes in {dimensions} dimensions, maybe gzipped");
        let bytes = read_file(path.clone(), &expected, SOURCE)?;
        let mut file = Self { path, sizes: vec![], bytes };

        // By content, not by name: some browsers unpack a download and keep its name.
        if file.bytes.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = Vec::new();
            if let Err(error) = MultiGzDecoder::new(&file.bytes[..]).read_to_end(&mut unpacked) {
                return Err(file.damaged("a whole gzip file", &format!("one where {error}")));
            }
            file.bytes = unpacked;
        }
        file.parse_header(dimensions)?;
        Ok(file)
    }

    fn parse_header(&mut self, dimensions: usize) -> Result<(), DataError> {
        let magic = 0x0800 + dimensions as u32;
        if let Some(found) = self.bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
            && found != magic
        {
            let expected = format!("the magic number {magic:#010x}");
            return Err(self.damaged(&expected, &format!("{found:#010x}")));
        }
        let header = 4 + 4 * dimensions;
        let Some(words) = self.bytes.get(4..header) else {
            let expected = format!("a header of {header} bytes");
            return Err(self.damaged(&expected, &format!("{} bytes in all", self.bytes.len())));
        };
        let sizes: Vec<usize> = words
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes(word.try_into().expect("four bytes")) as usize)
            .collect();

        // The sizes are what the file says: they are only believed once the length agrees.
        let length = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if length.and_then(|length| length.checked_add(header)) != Some(self.bytes.len()) {
            let expected = format!("{header} bytes of header and then {sizes:?} bytes");
            return Err(self.damaged(&expected, &format!("{} bytes in all", self.bytes.len())));
        }
        self.sizes = sizes;
        Ok(())
    }

    fn values(&self) -> &[u8] {
        &self.bytes[4 + 4 * self.sizes.len()..]
    }

    fn damaged(&self, expected: &str, found: &str) -> DataError {
        DataError::Damaged {
            path: self.path.clone(),
            expected: expected.to_owned(),
            found: found.to_owned(),
            source_url: SOURCE,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::super::tests::TempDir;
    use super::*;

    fn idx(sizes: &[u32], values: &[u8]) -> Vec<u8> {
        let magic = 0x0800 + sizes.len() as u32;
        let header = std::iter::once(magic).chain(sizes.iter().copied());
        header.flat_map(u32::to_be_bytes).chain(values.iter().copied()).collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Images 0, 1, ... with every pixel the image's number, and their labels.
    fn pair(count: u32) -> (Vec<u8>, Vec<u8>) {
        let pixels: Vec<u8> = (0..count).flat_map(|i| [i as u8; 28 * 28]).collect();
        let labels: Vec<u8> = (0..count).map(|i| (i % 10) as u8).collect();
        (idx(&[count, 28, 28], &pixels), idx(&[count], &labels))
    }

    /// A directory with three training and two test images, one file gzipped.
    fn directory(name: &str) -> TempDir {
        let dir = TempDir::new(name);
        let ((train_images, train_labels), (test_images, test_labels)) = (pair(3), pair(2));
        dir.write("train-images-idx3-ubyte", &train_images);
        dir.write("train-labels-idx1-ubyte", &train_labels);
        dir.write("t10k-images-idx3-ubyte.gz", &gzip(&test_images));
        dir.write("t10k-labels-idx1-ubyte", &test_labels);
        dir
    }

    #[test]
    fn reads_plain_and_gzipped_files() {
        let dir = directory("idx-good");
        let data = read(&dir.0).unwrap();
        assert_eq!(data.shape, [1, 28, 28]);
        assert_eq!((data.train.len(), data.test.len()), (3, 2));
        assert_eq!(data.train[2], Image { pixels: vec![2; 28 * 28], label: 2 });
        assert_eq!(data.test[1], Image { pixels: vec![1; 28 * 28], label: 1 });
    }

    #[test]
    fn missing_and_damaged_files_are_named_with_what_was_expected_and_where_to_get_them() {
        let (images, labels) = pair(3);
        let zipped = gzip(&images);
        let huge = idx(&[u32::MAX, u32::MAX, u32::MAX], &[]);
        let bad_label = idx(&[3], &[0, 1, 10]);
        let wrong_size = idx(&[3, 2, 2], &[0; 12]);
        for (what, file, bytes, says) in [
            (
                "truncated",
                "train-images-idx3-ubyte",
                &images[..images.len() - 1],
                "2367 bytes in all",
            ),
            ("cut-header", "train-images-idx3-ubyte", &images[..7], "a header of 16 bytes"),
            ("empty", "train-labels-idx1-ubyte", &[][..], "0 bytes in all"),
            ("too-long", "train-labels-idx1-ubyte", &[&labels[..], &[0]].concat()[..], "12 bytes"),
            ("magic", "train-images-idx3-ubyte", &labels[..], "0x00000803"),
            ("cut-gzip", "train-images-idx3-ubyte", &zipped[..zipped.len() / 2], "gzip"),
            ("huge", "train-images-idx3-ubyte", &huge[..], "16 bytes in all"),
            ("label", "train-labels-idx1-ubyte", &bad_label[..], "the label 10"),
            ("count", "train-labels-idx1-ubyte", &pair(2).1[..], "3 labels"),
            ("size", "train-images-idx3-ubyte", &wrong_size[..], "28x28"),
        ] {
            let dir = directory(&format!("idx-{what}"));
            dir.write(file, bytes);
            let error = read(&dir.0).expect_err(what);
            assert!(matches!(error, DataError::Damaged { .. }), "{what}: {error:?}");
            let message = error.to_string();
            for part in [file, says, SOURCE] {
                assert!(message.contains(part), "{what}: no {part:?} in: {message}");
            }
        }

        let dir = directory("idx-missing");
        std::fs::remove_file(dir.0.join("t10k-labels-idx1-ubyte")).unwrap();
        let error = read(&dir.0).unwrap_err();
        assert!(matches!(error, DataError::Missing { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("t10k-labels-idx1-ubyte is missing"), "{message}");
        assert!(message.contains(SOURCE), "{message}");
    }
}
