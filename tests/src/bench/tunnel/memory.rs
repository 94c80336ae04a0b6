//! Memory of both ends together.

use std::fs;

use anyhow::{Context as _, Result};

use super::load::Loaded;
use crate::{lab::process::Process, tunnel::bed::Bed};

/// MiB that the ends have of their own, with so many connections that say nothing.
pub(super) fn held(bed: &Bed, loaded: &Loaded, ends: &[Process], count: usize) -> Result<f64> {
    let streams = loaded.hold(bed, count)?;
    let mut kib = 0;
    for end in ends {
        let id = end.id().context("an end has ended")?;
        kib += tree(i32::try_from(id)?)?;
    }
    drop(streams);
    Ok(f64::from(kib) / 1024.0)
}

/// Proportional set size of a process and of all that it has started, KiB.
fn tree(root: i32) -> Result<u32> {
    let mut total = own(root);
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if parent(id) == Some(root) {
            total += tree(id)?;
        }
    }
    Ok(total)
}

fn parent(id: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, after) = text.rsplit_once(") ")?;
    after.split(' ').nth(1)?.parse().ok()
}

fn own(id: i32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}
