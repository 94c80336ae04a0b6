//! One seed after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    answer::{Answer, Aspect, Pair, compare},
    ask::{Effort, Question},
    difference::Differences,
    question::{Place, Target, targets},
    scenario::Scenario,
    worlds::{Worlds, unspecified},
};

/// How hard questions are asked: first all of them, then those whose answers differ. Of three equal
/// servers one is missed in the first round once in 9 cells, in the last once in 10^13.
const ROUNDS: [Effort; 3] = [
    Effort {
        times: 8,
        limit: Duration::from_millis(400),
    },
    Effort {
        times: 40,
        limit: Duration::from_millis(800),
    },
    Effort {
        times: 80,
        limit: Duration::from_millis(1_500),
    },
];

/// A question that was answered differently.
#[derive(Clone, Debug)]
pub struct Found {
    /// Who asked.
    pub place: Place,
    /// Whom.
    pub target: Target,
    /// In what.
    pub aspect: Aspect,
    /// What kube-proxy's world said.
    pub reference: Answer,
    /// What Causeway's said.
    pub causeway: Answer,
    /// The difference of the list that explains it.
    pub explained: Option<String>,
}

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its scenario.
    pub scenario: Scenario,
    /// How many questions were compared.
    pub cells: usize,
    /// How many of them were answered by a server, refused, or not at all, with kube-proxy.
    pub ends: BTreeMap<super::answer::Kind, usize>,
    /// Those whose first answers differed in kind, and later ones did not.
    pub unsteady: Vec<String>,
    /// Those that differ.
    pub found: Vec<Found>,
    /// Until it was written and served, and until it was asked.
    pub took: [Duration; 2],
}

/// A question: a place and the number of a target.
type Cell = (Place, usize);

/// Does one.
pub fn seed(worlds: &mut Worlds, scenario: Scenario, differences: &Differences) -> Result<Outcome> {
    let start = Instant::now();
    worlds.apply(&scenario)?;
    worlds.wait(&scenario)?;
    let written = start.elapsed();
    let targets = targets(&scenario);
    let mut cells: BTreeSet<Cell> = Place::ALL
        .into_iter()
        .flat_map(|place| (0..targets.len()).map(move |number| (place, number)))
        .collect();
    let mut table = Table {
        scenario: &scenario,
        targets: &targets,
        differences,
        answers: [BTreeMap::new(), BTreeMap::new()],
    };
    let mut found = Vec::new();
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for (round, effort) in ROUNDS.into_iter().enumerate() {
        table.ask(worlds, &cells, effort)?;
        found = table.compare();
        let open = found.iter().filter(|one| one.explained.is_none());
        let open: Vec<&Found> = open.collect();
        if round == 0 {
            first = open
                .iter()
                .filter(|one| matches!(one.aspect, Aspect::Outcome { .. }))
                .map(|one| (one.name(), one.words()))
                .collect();
        }
        if open.is_empty() {
            break;
        }
        cells = open.iter().flat_map(|one| table.with_twin(one)).collect();
    }
    let still: BTreeSet<String> = found.iter().map(Found::name).collect();
    let unsteady = first
        .into_iter()
        .filter(|(name, _)| !still.contains(name))
        .map(|(name, words)| format!("{name}: {words}"))
        .collect();
    let mut ends = BTreeMap::new();
    for answer in table.answers[0].values() {
        for kind in answer.kinds() {
            *ends.entry(kind).or_insert(0) += 1;
        }
    }
    Ok(Outcome {
        cells: targets.len() * Place::ALL.len(),
        ends,
        unsteady,
        found,
        took: [written, start.elapsed().saturating_sub(written)],
        scenario,
    })
}

impl Found {
    /// Who asked whom.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} -> {}", self.place, self.target)
    }

    /// What both said.
    #[must_use]
    pub fn words(&self) -> String {
        format!(
            "kube-proxy: {}; causeway: {}",
            self.reference, self.causeway
        )
    }
}

struct Table<'a> {
    scenario: &'a Scenario,
    targets: &'a [Target],
    differences: &'a Differences,
    answers: [BTreeMap<Cell, Answer>; 2],
}

impl Table<'_> {
    fn ask(&mut self, worlds: &Worlds, cells: &BTreeSet<Cell>, effort: Effort) -> Result<()> {
        let mut groups: BTreeMap<Place, Vec<Vec<Question>>> = BTreeMap::new();
        let order: Vec<Cell> = cells.iter().copied().collect();
        // Which questions of a client come first decides where affinity leads it, so they come one
        // after the other.
        let mut last = None;
        for (number, (place, of)) in order.iter().enumerate() {
            let Some(target) = self.targets.get(*of) else {
                continue;
            };
            let question = Question {
                number,
                from: match place {
                    Place::Outside(_) => place.address(target.family),
                    _ => unspecified(target.family),
                },
                to: target.address,
                protocol: target.protocol,
            };
            let service = self.scenario.service(&target.service);
            let sticky = service.is_some_and(|service| service.affinity.is_some());
            let key = sticky.then(|| (*place, target.service.clone(), target.port, target.family));
            let of_place = groups.entry(*place).or_default();
            match of_place.last_mut() {
                Some(group) if key.is_some() && key == last => group.push(question),
                _ => of_place.push(vec![question]),
            }
            last = key;
        }
        let answers = worlds.ask(&groups, effort)?;
        for (known, new) in self.answers.iter_mut().zip(answers) {
            for (number, answer) in new {
                if let Some(cell) = order.get(number) {
                    known.insert(*cell, answer);
                }
            }
        }
        Ok(())
    }

    fn compare(&self) -> Vec<Found> {
        let mut found = Vec::new();
        for cell in self.answers[0].keys() {
            let (Some(pair), Some(target)) = (self.pair(*cell), self.targets.get(cell.1)) else {
                continue;
            };
            let twin = self.twin(*cell).and_then(|twin| self.pair(twin));
            for aspect in compare(cell.0, pair, twin) {
                let explained = self
                    .differences
                    .explain(self.scenario, cell.0, target, &aspect)
                    .map(|difference| difference.id.clone());
                found.push(Found {
                    place: cell.0,
                    target: target.clone(),
                    aspect,
                    reference: pair.reference.clone(),
                    causeway: pair.causeway.clone(),
                    explained,
                });
            }
        }
        found
    }

    fn pair(&self, cell: Cell) -> Option<Pair<'_>> {
        Some(Pair {
            reference: self.answers[0].get(&cell)?,
            causeway: self.answers[1].get(&cell)?,
        })
    }

    fn twin(&self, (place, of): Cell) -> Option<Cell> {
        let target = self.targets.get(of)?;
        let service = self.scenario.service(&target.service)?;
        let twin = service.twin.as_ref()?;
        let number = self
            .targets
            .iter()
            .position(|other| other.service == *twin && other.is_like(target))?;
        Some((place, number))
    }

    fn with_twin(&self, found: &Found) -> Vec<Cell> {
        let number = self.targets.iter().position(|one| *one == found.target);
        let own = number.map(|number| (found.place, number));
        let twin = own.and_then(|cell| self.twin(cell));
        own.into_iter().chain(twin).collect()
    }
}
