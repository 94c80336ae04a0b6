//! What is given to users: static executables, an image with them and nothing else, and the files
//! that start them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::image::{Entry, Image};
use crate::{process, workspace};

/// The image, as `deploy/kubernetes/causeway.yaml` names it.
pub(crate) const IMAGE: &str = concat!("causeway.dev/causeway:", env!("CARGO_PKG_VERSION"));

/// Packages and their executables.
const EXECUTABLES: [(&str, &str); 2] = [("proxy-user", "causeway"), ("proxy-cni", "causeway-cni")];

/// Files that are given as they are.
const FILES: [&str; 2] = [
    "deploy/kubernetes/causeway.yaml",
    "deploy/systemd/causeway.service",
];

/// Builds all of it into `target/dist`; gives back the image's archive.
pub(crate) fn run() -> Result<PathBuf> {
    let start = Instant::now();
    let folder = workspace::target().join("dist");
    let archive = image(&build()?, &folder)?;
    for file in FILES {
        let from = workspace::root().join(file);
        let name = from.file_name().context("a file has a name")?.to_owned();
        copy(&from, &folder.join(name))?;
    }
    println!("dist: {:.0} s", start.elapsed().as_secs_f64());
    for entry in fs::read_dir(&folder).context("cannot list what was built")? {
        let entry = entry?;
        let bytes = entry.metadata()?.len();
        println!("{:>8} KiB  {}", bytes / 1024, entry.path().display());
    }
    Ok(archive)
}

/// The image with the executables that tests start: those that a user gets, less optimised, and
/// sooner there. The kernel programs in them are the same.
pub(crate) fn for_tests() -> Result<PathBuf> {
    let Some(target) = process::target_for_tests() else {
        // They need shared libraries.
        return run();
    };
    let mut cargo = process::cargo_for_tests("build");
    for (package, name) in EXECUTABLES {
        cargo.args(["--package", package, "--bin", name]);
    }
    process::run(&mut cargo)?;
    image(
        &workspace::target().join(target).join("debug"),
        &workspace::target().join("dist-for-tests"),
    )
}

/// Puts these executables into an image in `folder`.
fn image(built: &Path, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (_, name) in EXECUTABLES {
        // A fifth of the size; what goes wrong is told in words, not in frames of a stack.
        process::quiet(
            process::command("strip")
                .arg("-o")
                .arg(folder.join(name))
                .arg(built.join(name)),
        )?;
    }
    let archive = folder.join("causeway-image.tar");
    let program = |name: &str| Entry::Program(name.to_owned(), folder.join(name));
    Image {
        names: vec![IMAGE.to_owned()],
        entrypoint: vec!["/causeway".to_owned()],
        entries: EXECUTABLES.map(|(_, name)| program(name)).into(),
        ..Image::default()
    }
    .write(&archive)?;
    Ok(archive)
}

/// Builds the executables, and says where they are. musl, since a static glibc looks up names with
/// the host's shared parts, which no image has.
fn build() -> Result<PathBuf> {
    let target = target();
    let mut cargo = process::cargo();
    cargo.args(["build", "--release", "--target", &target]);
    for (package, name) in EXECUTABLES {
        cargo.args(["--package", package, "--bin", name]);
    }
    process::run(&mut cargo)?;
    Ok(workspace::target().join(target).join("release"))
}

/// The Rust target of what is given to users.
pub(crate) fn target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::IMAGE;

    #[test]
    fn the_manifest_names_the_image_of_this_release() {
        let manifest = include_str!("../../deploy/kubernetes/causeway.yaml");
        let images: Vec<&str> = manifest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "))
            .collect();
        assert_eq!(images, [IMAGE; 2]);
    }
}
