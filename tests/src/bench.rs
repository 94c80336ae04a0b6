//! Benchmarks: what a packet, a connection and a change of configuration cost.
//!
//! Method, the same for every suite: all work on one CPU; CPU time, not wall time; subject and peer
//! in turn, round by round, and the median of the rounds' ratios; one pair of the same thing in each run,
//! whose ratio says whether the run can be believed. `docs/benchmarks.md` has the figures.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use proxy_user::dataplane::load::embedded_object;

pub mod causeway;
pub mod frame;
pub mod kernel;
pub mod measure;
pub mod namespace;
pub mod programs;
pub mod report;
pub mod wire;

#[path = "../bench-ebpf/src/feed.rs"]
pub mod feed;

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The CPU that everything runs on.
    pub cpu: usize,
    /// A first answer within a minute per suite.
    pub quick: bool,
    /// Causeway's object.
    object: Vec<u8>,
}

impl Options {
    /// Measures the object in `file`, or the one that this build has made.
    pub fn new(cpu: usize, quick: bool, file: Option<PathBuf>) -> Result<Self> {
        let object = match file {
            Some(file) => fs::read(&file).with_context(|| format!("reading {}", file.display()))?,
            None => embedded_object().map(<[u8]>::to_vec).unwrap_or_default(),
        };
        Ok(Self { cpu, quick, object })
    }

    /// Causeway's object.
    pub fn object(&self) -> Result<&[u8]> {
        ensure!(
            !self.object.is_empty(),
            "no object; `cargo xtask setup` installs what building one takes"
        );
        Ok(&self.object)
    }

    /// How many rounds: in a quick run and in a full one.
    #[must_use]
    pub fn rounds(&self, quick: u32, full: u32) -> u32 {
        if self.quick { quick } else { full }
    }
}
