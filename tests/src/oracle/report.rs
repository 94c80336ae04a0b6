//! What a person, and a program, is told.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    difference::Differences,
    objects,
    run::{Found, Outcome},
};

/// Over all seeds.
#[derive(Debug, Default)]
pub struct Report {
    seeds: Vec<Value>,
    cells: usize,
    explained: BTreeMap<String, usize>,
    unexplained: usize,
    unsteady: usize,
}

impl Report {
    /// Tells about a seed, and remembers it.
    pub fn add(&mut self, outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
        let seed = outcome.scenario.seed;
        let open: Vec<&Found> = outcome
            .found
            .iter()
            .filter(|one| one.explained.is_none())
            .collect();
        for found in &outcome.found {
            if let Some(id) = &found.explained {
                *self.explained.entry(id.clone()).or_default() += 1;
            }
        }
        self.cells += outcome.cells;
        self.unexplained += open.len();
        self.unsteady += outcome.unsteady.len();
        let [written, asked] = outcome.took.map(|took| took.as_secs_f64());
        let ends: Vec<String> = outcome
            .ends
            .iter()
            .map(|(kind, count)| format!("{count} {kind:?}"))
            .collect();
        writeln!(
            out,
            "seed {seed:<6} {:>5} questions ({}); {:>4} explained, {} not, {} unsteady; {written:.1} s to serve, \
             {asked:.1} s to ask",
            outcome.cells,
            ends.join(", ").to_lowercase(),
            outcome.found.len() - open.len(),
            open.len(),
            outcome.unsteady.len(),
        )?;
        for text in &outcome.unsteady {
            writeln!(out, "  unsteady  {text}")?;
        }
        show(outcome, &open, out)?;
        self.seeds.push(as_json(outcome));
        Ok(())
    }

    /// True if everything was explained.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.unexplained == 0
    }

    /// Tells about all.
    pub fn close(
        &self,
        differences: &Differences,
        took: Duration,
        out: &mut impl Write,
    ) -> io::Result<()> {
        writeln!(out, "\ndifferences that a rule explains:")?;
        for difference in &differences.list {
            let count = self
                .explained
                .get(&difference.id)
                .copied()
                .unwrap_or_default();
            writeln!(out, "{count:>7}  {:<28} {}", difference.id, difference.rule)?;
        }
        writeln!(
            out,
            "\n{} seeds, {} questions in both worlds: {} differ by a rule, {} without one, {} were unsteady; {:.0} s",
            self.seeds.len(),
            self.cells,
            self.explained.values().sum::<usize>(),
            self.unexplained,
            self.unsteady,
            took.as_secs_f64(),
        )
    }

    /// Writes all of it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let all = json!({
            "questions": self.cells,
            "explained": self.explained,
            "unexplained": self.unexplained,
            "unsteady": self.unsteady,
            "seeds": self.seeds,
        });
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, format!("{all:#}\n")).with_context(|| format!("writing {}", path.display()))
    }
}

/// Each service once, with all that differs about it.
fn show(outcome: &Outcome, open: &[&Found], out: &mut impl Write) -> io::Result<()> {
    let mut by_service: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
    for found in open {
        by_service
            .entry(&found.target.service)
            .or_default()
            .push(found);
    }
    for (name, all) in by_service {
        writeln!(
            out,
            "\n  UNEXPLAINED: seed {}, service {name}",
            outcome.scenario.seed
        )?;
        for found in all {
            writeln!(out, "    {} ({})", found.name(), aspect(found))?;
            writeln!(out, "      kube-proxy  {}", found.reference)?;
            writeln!(out, "      causeway    {}", found.causeway)?;
        }
        if let Some(service) = outcome.scenario.service(name) {
            for object in objects::of_service(service, &outcome.scenario) {
                writeln!(out, "    {object}")?;
            }
        }
    }
    Ok(())
}

fn aspect(found: &Found) -> String {
    format!("{:?}", found.aspect)
}

fn as_json(outcome: &Outcome) -> Value {
    let found: Vec<Value> = outcome
        .found
        .iter()
        .map(|found| {
            json!({
                "question": found.name(),
                "aspect": aspect(found),
                "kube-proxy": found.reference.to_string(),
                "causeway": found.causeway.to_string(),
                "explained-by": found.explained,
            })
        })
        .collect();
    json!({
        "seed": outcome.scenario.seed,
        "questions": outcome.cells,
        "differences": found,
        "unsteady": outcome.unsteady,
    })
}
