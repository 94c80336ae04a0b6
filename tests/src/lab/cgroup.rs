//! Control groups of a world's processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result};

use super::{remains, world::World};

/// Where cgroups of version 2 are mounted.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next(), words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    found.context("no cgroup2 file system is mounted; `mount -t cgroup2 cgroup2 DIR` mounts it")
}

/// Makes a cgroup for processes of a world. It goes with the world.
pub fn make(world: &World, name: &str) -> Result<PathBuf> {
    let path = mount()?.join(format!("{}{name}", remains::prefix(world.name())));
    fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
    Ok(path)
}

/// Moves the calling process into a cgroup. Sockets belong to the one that they are made in.
pub fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, process::id().to_string())
        .with_context(|| format!("writing to {}", file.display()))
}

/// Removes the cgroups whose names begin so; no process may be left in them.
pub(super) fn remove_all(prefix: &str) -> Result<()> {
    let Ok(mount) = mount() else {
        return Ok(());
    };
    for entry in fs::read_dir(mount)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let path = entry.path();
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
