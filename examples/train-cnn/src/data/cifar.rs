//! CIFAR-10, in its binary version.
//!
//! A batch is 10000 records of one byte of label and 3072 of image: red, green and blue planes of
//! 32x32, which is the layout that the model takes.

use std::path::Path;

use super::{CLASSES, Data, DataError, Image, read_file};

/// Where the original files are.
pub const SOURCE: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";

const SHAPE: [usize; 3] = [3, 32, 32];
const RECORD: usize = 1 + SHAPE[0] * SHAPE[1] * SHAPE[2];
const RECORDS: usize = 10_000;

/// Reads the six batches in `dir`, or in the directory `cifar-10-batches-bin` there.
pub fn read(dir: &Path) -> Result<Data, DataError> {
    let unpacked = dir.join("cifar-10-batches-bin");
    read_batches(if unpacked.is_dir() { &unpacked } else { dir }, RECORDS)
}

fn read_batches(dir: &Path, records: usize) -> Result<Data, DataError> {
    let mut train = Vec::with_capacity(5 * records);
    for batch in 1..=5 {
        train.extend(read_batch(dir, &format!("data_batch_{batch}.bin"), records)?);
    }
    Ok(Data { shape: SHAPE, train, test: read_batch(dir, "test_batch.bin", records)? })
}

fn read_batch(dir: &Path, name: &str, records: usize) -> Result<Vec<Image>, DataError> {
    let path = dir.join(name);
    let expected = format!("{records} records of {RECORD} bytes, {} in all", records * RECORD);
    let bytes = read_file(path.clone(), &expected, SOURCE)?;
    if bytes.len() != records * RECORD {
        let found = format!("{} bytes", bytes.len());
        return Err(DataError::Damaged { path, expected, found, source_url: SOURCE });
    }
    bytes
        .chunks_exact(RECORD)
        .enumerate()
        .map(|(i, record)| match record[0] {
            label if (label as usize) < CLASSES => {
                Ok(Image { pixels: record[1..].to_vec(), label })
            }
            label => Err(DataError::Damaged {
                path: path.clone(),
                expected: "labels from 0 to 9".to_owned(),
                found: format!("the label {label} in record {i}"),
                source_url: SOURCE,
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::TempDir;
    use super::*;

    /// Two records for each batch: labels `batch` and `batch + 1`, planes of 10, 20 and 30.
    fn write_batches(dir: &TempDir, prefix: &str) {
        for (batch, name) in ["test_batch.bin".to_owned()]
            .into_iter()
            .chain((1..=5).map(|i| format!("data_batch_{i}.bin")))
            .enumerate()
        {
            let record =
                |label: usize| [&[label as u8][..], &[10; 1024], &[20; 1024], &[30; 1024]].concat();
            dir.write(&format!("{prefix}{name}"), &[record(batch), record(batch + 1)].concat());
        }
    }

    #[test]
    fn reads_the_batches_in_order() {
        let dir = TempDir::new("cifar-good");
        write_batches(&dir, "");
        let data = read_batches(&dir.0, 2).unwrap();
        assert_eq!(data.shape, [3, 32, 32]);
        let labels: Vec<u8> = data.train.iter().map(|image| image.label).collect();
        assert_eq!(labels, [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]);
        assert_eq!(data.test.len(), 2);
        assert_eq!(data.test[0].pixels[1023..1025], [10, 20], "planes stay in order");
    }

    #[test]
    fn missing_and_damaged_batches_are_named_with_what_was_expected_and_where_to_get_them() {
        let dir = TempDir::new("cifar-bad");
        let check = |says: &[&str]| {
            let message = read_batches(&dir.0, 2).unwrap_err().to_string();
            for part in says.iter().chain(&[SOURCE]) {
                assert!(message.contains(part), "no {part:?} in: {message}");
            }
        };
        check(&["data_batch_1.bin is missing", "2 records of 3073 bytes"]);
        write_batches(&dir, "");
        dir.write("test_batch.bin", &[0; RECORD]);
        check(&["test_batch.bin is damaged", "found 3073 bytes"]);
        dir.write("test_batch.bin", &[12; 2 * RECORD]);
        check(&["test_batch.bin is damaged", "the label 12 in record 0"]);
    }

    #[test]
    fn the_unpacked_archive_itself_will_do() {
        let dir = TempDir::new("cifar-parent");
        std::fs::create_dir(dir.0.join("cifar-10-batches-bin")).unwrap();
        write_batches(&dir, "cifar-10-batches-bin/");
        // The batches are too short for `read`, but it is those in the directory below it names.
        let message = read(&dir.0).unwrap_err().to_string();
        assert!(message.contains("cifar-10-batches-bin/data_batch_1.bin is damaged"), "{message}");
    }
}
