//! A device for the GPU's tests: where there is no card, Mesa's software Vulkan.

use std::env;
use std::path::Path;
use std::process::Command;

/// Where the Vulkan loader looks for drivers on Linux.
const DRIVER_FOLDERS: [&str; 4] = [
    "/etc/vulkan/icd.d",
    "/usr/share/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
    "/usr/local/etc/vulkan/icd.d",
];

/// The package with a driver that needs no card, by package manager: command, then arguments.
const INSTALLERS: [&[&str]; 3] = [
    &["apt-get", "install", "-y", "mesa-vulkan-drivers"],
    &["dnf", "install", "-y", "mesa-vulkan-drivers", "vulkan-loader"],
    &["pacman", "-S", "--noconfirm", "vulkan-swrast", "vulkan-icd-loader"],
];

/// Makes sure that there is a Vulkan driver, by installing one if this user may.
///
/// # Errors
///
/// What to install, if there is none and it could not be installed.
pub fn ensure() -> Result<(), String> {
    // Metal and DirectX 12 come with their systems.
    if !cfg!(target_os = "linux") || has_driver() {
        return Ok(());
    }
    eprintln!("No Vulkan driver: the GPU's tests need one, if only in software.");
    for installer in INSTALLERS.iter().filter(|installer| has_command(installer[0])) {
        if installer[0] == "apt-get" {
            // A fresh machine may have no list of packages; a stale one may do.
            run(&["apt-get", "update"]);
        }
        if run(installer) && has_driver() {
            return Ok(());
        }
    }
    Err("install a Vulkan driver, for example Mesa's software one: \
         apt-get install mesa-vulkan-drivers (Debian, Ubuntu), \
         dnf install mesa-vulkan-drivers (Fedora), pacman -S vulkan-swrast (Arch)"
        .into())
}

fn has_driver() -> bool {
    let named = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"];
    named.iter().any(|name| env::var_os(name).is_some())
        || DRIVER_FOLDERS.iter().any(|folder| {
            Path::new(folder).read_dir().is_ok_and(|mut entries| entries.next().is_some())
        })
}

fn has_command(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Runs a command, with `sudo` where that asks for no password and is there; whether it succeeded.
fn run(command: &[&str]) -> bool {
    let status = |words: &[&str]| {
        eprintln!("{}", words.join(" "));
        Command::new(words[0])
            .args(&words[1..])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .is_ok_and(|status| status.success())
    };
    status(command) || has_command("sudo") && status(&[&["sudo", "-n"], command].concat())
}
