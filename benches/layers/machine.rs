//! Facts about the machine and the program that figures are worth nothing without.

use std::fs::read_to_string;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Where and how a measurement was made. What the system does not tell is left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Seconds since 1970, in UTC.
    pub unix_time: u64,
    /// The processor's name for itself.
    pub processor: Option<String>,
    /// Vector extensions that matter to the kernels, of those the processor has.
    pub extensions: Vec<&'static str>,
    /// Processors this process may use.
    pub processors: usize,
    /// Level, kind and size of the first processor's caches.
    pub caches: Vec<String>,
    /// Memory of the machine, as the system states it.
    pub memory: Option<String>,
    /// The system and its version.
    pub system: String,
    /// When the system backs memory with huge pages.
    pub huge_pages: Option<String>,
    /// Settings of the allocator in the environment.
    pub malloc: Vec<String>,
    /// The compiler found now, which is the one that compiled this if cargo has run it.
    pub compiler: Option<String>,
    /// The commit of the working directory, marked if files differ from it.
    pub commit: Option<String>,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Self {
        let line = |path: &str, name: &str| -> Option<String> {
            let text = read_to_string(path).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        Self {
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
            processor: line("/proc/cpuinfo", "model name"),
            extensions: extensions(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            caches: caches(),
            memory: line("/proc/meminfo", "MemTotal"),
            system: format!(
                "{} {} {}",
                std::env::consts::OS,
                word("/proc/sys/kernel/osrelease").unwrap_or_default(),
                std::env::consts::ARCH
            ),
            huge_pages: word("/sys/kernel/mm/transparent_hugepage/enabled"),
            malloc: std::env::vars()
                .filter(|(name, _)| name.starts_with("MALLOC_") || name == "GLIBC_TUNABLES")
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            compiler: output("rustc", &["--version"]),
            commit: output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        }
    }
}

fn word(path: &str) -> Option<String> {
    Some(read_to_string(path).ok()?.trim().to_string())
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| text.trim().to_string())
}

fn caches() -> Vec<String> {
    let cache = |index: usize| -> Option<String> {
        let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let fact = |name: &str| word(&format!("{folder}/{name}"));
        Some(format!("L{} {} {}", fact("level")?, fact("type")?, fact("size")?))
    };
    (0..).map_while(cache).collect()
}

fn extensions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    let all = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, bool); 0] = [];
    all.into_iter().filter_map(|(name, here)| here.then_some(name)).collect()
}
