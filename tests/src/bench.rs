//! Benchmarks: what a packet, a connection and a change of configuration cost.
//!
//! Method, the same for every suite: all work on one CPU; CPU time, not wall time; subject and peer
//! in turn, round by round, and the median of the rounds' ratios; one pair of the same thing in each run,
//! whose ratio says whether the run can be believed. `docs/benchmarks.md` has the figures.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use proxy_user::dataplane::load::embedded_object;

pub mod causeway;
pub mod frame;
pub mod kernel;
pub mod measure;
pub mod namespace;
pub mod programs;
pub mod report;
pub mod sync;
pub mod tunnel;
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
    /// Cases of suites `kernel`, `wire` and `tunnel` to run; all if none is named.
    pub cases: Vec<String>,
    /// Numbers of flows that suite `kernel` measures with; all if none is named.
    pub flows: Vec<u32>,
    /// Causeway's object.
    object: Vec<u8>,
    /// Another one, that suite `kernel` compares it with instead of the empty program.
    against: Option<Vec<u8>>,
}

impl Options {
    /// Measures the object that this build has made.
    #[must_use]
    pub fn new(cpu: usize, quick: bool) -> Self {
        let object = embedded_object().map(<[u8]>::to_vec).unwrap_or_default();
        Self {
            cpu,
            quick,
            cases: Vec::new(),
            flows: Vec::new(),
            object,
            against: None,
        }
    }

    /// Measures the object in `file` instead.
    pub fn measure(&mut self, file: &Path) -> Result<()> {
        self.object = read(file)?;
        Ok(())
    }

    /// Compares with the object in `file`.
    pub fn compare(&mut self, file: &Path) -> Result<()> {
        self.against = Some(read(file)?);
        Ok(())
    }

    /// Causeway's object.
    pub fn object(&self) -> Result<&[u8]> {
        ensure!(
            !self.object.is_empty(),
            "no object; `cargo xtask setup` installs what building one takes"
        );
        Ok(&self.object)
    }

    /// The object that suite `kernel` compares with, if it is not the empty program.
    #[must_use]
    pub fn against(&self) -> Option<&[u8]> {
        self.against.as_deref()
    }

    /// Whether a case is to be run.
    #[must_use]
    pub fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|name| name == case)
    }

    /// How many rounds: in a quick run and in a full one.
    #[must_use]
    pub fn rounds(&self, quick: u32, full: u32) -> u32 {
        if self.quick { quick } else { full }
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}
