//! Bytes as people read and write them.

use clap::ValueEnum;

/// The unit of memory in tables and plots.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Units {
    /// Bytes
    B,
    /// 1024 bytes
    #[value(name = "KiB", alias = "kib")]
    KiB,
    /// 1024 KiB
    #[default]
    #[value(name = "MiB", alias = "mib")]
    MiB,
    /// 1024 MiB
    #[value(name = "GiB", alias = "gib")]
    GiB,
}

impl Units {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Units::B => "B",
            Units::KiB => "KiB",
            Units::MiB => "MiB",
            Units::GiB => "GiB",
        }
    }

    /// Bytes in one of it.
    pub fn bytes(self) -> f64 {
        match self {
            Units::B => 1.0,
            Units::KiB => f64::from(1 << 10),
            Units::MiB => f64::from(1 << 20),
            Units::GiB => f64::from(1 << 30),
        }
    }

    /// `bytes` in this unit, without its name: two decimals, none for bytes.
    pub fn of(self, bytes: impl Into<i128>) -> String {
        let bytes = bytes.into();
        match self {
            Units::B => bytes.to_string(),
            _ => format!("{:.2}", bytes as f64 / self.bytes()),
        }
    }
}

/// `bytes` in the largest unit that it has one of.
pub fn readable(bytes: u64) -> String {
    let unit = [Units::GiB, Units::MiB, Units::KiB]
        .into_iter()
        .find(|unit| bytes as f64 >= unit.bytes())
        .unwrap_or(Units::B);
    format!("{} {}", unit.of(bytes), unit.name())
}

/// Reads `512MiB`, `1.5 GiB`, `2GB` or a number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let size: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => Units::KiB.bytes(),
        "mib" | "m" => Units::MiB.bytes(),
        "gib" | "g" => Units::GiB.bytes(),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err(format!("{text:?} is not an amount of memory, such as 2GiB or 512MiB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number * size >= 1.0 && number * size < u64::MAX as f64 => {
            Ok((number * size) as u64)
        }
        _ => Err(format!("{text:?} is not an amount of memory, such as 2GiB")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_written() {
        for (text, bytes) in
            [("2GiB", 2 << 30), ("1.5 MiB", 3 << 19), ("2GB", 2_000_000_000), ("17", 17)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "2 GiBi", "0", "-1", "1.2.3", "nanMiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(Units::MiB.of(3u64 << 19), "1.50");
        assert_eq!(Units::MiB.of(-(3i64 << 19)), "-1.50");
        assert_eq!(Units::B.of(17u64), "17");
        assert_eq!((readable(3 << 29), readable(12)), ("1.50 GiB".into(), "12 B".into()));
    }
}
