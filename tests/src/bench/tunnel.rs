//! Suite `tunnel`: the return proxy with Causeway at both ends, with one and with two SSH sessions,
//! against `ssh -R` with `sshd`, given the same cipher.
//!
//! Each has a world of its own; all are measured in turn, round by round, and what counts is the
//! median of the rounds' ratios. A path of 20 ms is made by a relay that holds back what it carries.

mod delay;
mod load;
mod memory;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::load::{Direction, Loaded};
use super::{
    Options,
    report::{Check, Row, Topic},
};
use crate::{
    lab::process::Process,
    tunnel::bed::{Bed, LIMIT, Object, run_in},
};

/// Longest that somebody may take to be back; who takes longer counts with this.
const BACK: Duration = Duration::from_secs(30);

/// One of those that are compared.
struct Subject {
    name: &'static str,
    ends: Vec<Process>,
    loaded: Loaded,
    bed: Bed,
    sessions: u8,
}

const PEER: &str = "openssh";

impl Subject {
    /// Makes its world, with the servers of the load.
    fn new(name: &'static str, sessions: u8, number: usize) -> Result<Self> {
        let bed = Bed::named(&format!("b{}x{number}", std::process::id()))?;
        let loaded = Loaded::new(&bed)?;
        Ok(Self {
            name,
            ends: Vec::new(),
            loaded,
            bed,
            sessions,
        })
    }

    fn is_peer(&self) -> bool {
        self.name == PEER
    }

    /// Ends both ends, with all that they have started.
    fn end(&mut self) {
        for id in self.ends.iter().filter_map(Process::id) {
            if let Ok(id) = i32::try_from(id) {
                // Fails if it has ended already. A session that lived on would keep its port.
                let _ = kill(Pid::from_raw(-id), Signal::SIGKILL);
            }
        }
        self.ends.clear();
        std::thread::sleep(Duration::from_millis(500));
    }

    /// Starts both ends anew.
    fn start(&mut self) -> Result<()> {
        self.end();
        let bed = &self.bed;
        if self.is_peer() {
            bed.manifests(&Object::openssh())?;
            let sshd = bed.start_sshd(
                "Ciphers aes128-gcm@openssh.com\nClientAliveInterval 1\nClientAliveCountMax 3",
            )?;
            self.ends.push(sshd);
            // As people have it: again and again. Without `ClientAliveInterval` a dead session keeps its
            // port for good.
            let ssh = bed.ssh("root", &["-o", "ServerAliveCountMax=3"]);
            let mut line = String::from("while :; do ssh");
            for argument in ssh.get_args() {
                write!(line, " '{}'", argument.to_string_lossy())?;
            }
            line += "; sleep 1; done";
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &line]);
            self.ends
                .push(bed.world().start(&bed.server(), shell, "ssh")?);
        } else {
            bed.manifests(&Object::default().with(&format!("sessions: {}", self.sessions)))?;
            self.ends.push(bed.start_node()?);
            self.ends.push(bed.start_server()?);
            bed.wait_until_up()?;
        }
        self.carries(LIMIT).context("it does not carry")?;
        Ok(())
    }

    /// How long until a connection works.
    fn carries(&self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            if self.loaded.answers(&self.bed) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                bail!("{} does not carry after {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Cuts the path without a word for 6 s, and returns how long after its return all is well.
    fn recover(&self) -> Result<f64> {
        let ip = |arguments: &[&str]| {
            let mut ip = std::process::Command::new("ip");
            run_in(&self.bed.server(), ip.args(arguments))
        };
        ip(&["link", "set", "eth0", "down"])?;
        std::thread::sleep(Duration::from_secs(6));
        ip(&["link", "set", "eth0", "up"])?;
        let via = ["via", "198.51.100.1", "dev", "eth0", "onlink"];
        ip(&[&["route", "replace", "default"], &via[..]].concat())?;
        let back = self.carries(BACK).unwrap_or(BACK);
        Ok(back.as_secs_f64())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.end();
    }
}

/// A case: its name, its unit, and how it is measured.
struct Case {
    name: &'static str,
    unit: &'static str,
    measure: fn(&Subject, bool) -> Result<f64>,
}

fn streams(subject: &Subject, count: usize, direction: Direction, quick: bool) -> Result<f64> {
    let time = Duration::from_secs(if quick { 1 } else { 3 });
    subject.loaded.streams(&subject.bed, count, direction, time)
}

/// Cases of the short path.
const NEAR: &[Case] = &[
    Case {
        name: "stream-1-0ms",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 1, Direction::Up, quick),
    },
    Case {
        name: "stream-1-0ms-down",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 1, Direction::Down, quick),
    },
    Case {
        name: "stream-16-0ms",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 16, Direction::Up, quick),
    },
    Case {
        name: "stream-16-0ms-down",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 16, Direction::Down, quick),
    },
    Case {
        name: "connections",
        unit: "1/s",
        measure: |s, quick| {
            let time = Duration::from_secs(if quick { 1 } else { 3 });
            s.loaded.connections(&s.bed, time)
        },
    },
    Case {
        name: "echo-p99",
        unit: "ms",
        measure: |s, quick| s.loaded.echo(&s.bed, if quick { 300 } else { 2_000 }),
    },
];

/// Cases of the long path.
const FAR: &[Case] = &[
    Case {
        name: "stream-1-20ms",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 1, Direction::Up, quick),
    },
    Case {
        name: "stream-1-20ms-down",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 1, Direction::Down, quick),
    },
    Case {
        name: "stream-16-20ms",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 16, Direction::Up, quick),
    },
    Case {
        name: "stream-16-20ms-down",
        unit: "Gbit/s",
        measure: |s, quick| streams(s, 16, Direction::Down, quick),
    },
];

/// Cases for which both ends are started anew each time.
const ALONE: &[Case] = &[
    Case {
        name: "memory-2000",
        unit: "MiB",
        measure: |s, _| memory::held(&s.bed, &s.loaded, &s.ends, 2_000),
    },
    Case {
        name: "recover",
        unit: "s",
        measure: |s, _| s.recover(),
    },
];

/// What each subject's figures of a case were, in the rounds' order.
struct Figures {
    case: &'static str,
    unit: &'static str,
    of: Vec<(&'static str, Vec<f64>)>,
}

/// Runs the suite.
pub fn run(options: &Options) -> Result<(Vec<Row>, Vec<Check>)> {
    load::many_descriptors()?;
    let mut subjects = Vec::new();
    let wanted = |case: &&Case| options.wants(case.name);
    for (number, (name, sessions)) in [(PEER, 1), ("causeway", 1), ("causeway-k2", 2)]
        .into_iter()
        .enumerate()
    {
        subjects.push(Subject::new(name, sessions, number)?);
    }
    let mut all = Vec::new();
    for subject in &mut subjects {
        subject.start().with_context(|| subject.name)?;
    }
    let rounds = options.rounds(2, 5);
    for case in NEAR.iter().filter(wanted) {
        all.push(measure(options, &mut subjects, case, rounds, false)?);
    }
    for case in ALONE.iter().filter(wanted) {
        all.push(measure(
            options,
            &mut subjects,
            case,
            options.rounds(1, 3),
            true,
        )?);
    }
    let far: Vec<&Case> = FAR.iter().filter(wanted).collect();
    for subject in subjects.iter_mut().filter(|_| !far.is_empty()) {
        delay::begin(&subject.bed, Duration::from_millis(10))?;
        subject.start().with_context(|| subject.name)?;
    }
    for case in far {
        all.push(measure(options, &mut subjects, case, rounds, false)?);
    }
    let mut rows = Vec::new();
    for figures in &all {
        rows.extend(figures.rows()?);
    }
    let checks = checks(&rows);
    Ok((rows, checks))
}

fn measure(
    options: &Options,
    subjects: &mut [Subject],
    case: &Case,
    rounds: u32,
    anew: bool,
) -> Result<Figures> {
    let mut of: Vec<(&'static str, Vec<f64>)> = subjects
        .iter()
        .map(|subject| (subject.name, Vec::new()))
        .collect();
    for _ in 0..rounds {
        for (subject, (_, figures)) in subjects.iter_mut().zip(&mut of) {
            let what = || format!("{} of {}", case.name, subject.name);
            if anew {
                let what = what();
                subject.start().context(what)?;
            }
            let what = format!("{} of {}", case.name, subject.name);
            let figure = (case.measure)(subject, options.quick).context(what)?;
            tracing::info!(case = case.name, subject = subject.name, figure, "measured");
            figures.push(figure);
        }
    }
    if anew {
        for subject in subjects {
            subject.start()?;
        }
    }
    Ok(Figures {
        case: case.name,
        unit: case.unit,
        of,
    })
}

impl Figures {
    fn rows(&self) -> Result<Vec<Row>> {
        let peer = self.of.iter().find(|(name, _)| *name == PEER);
        let (_, peer) = peer.context("the peer was measured")?;
        let mut rows = Vec::new();
        for (name, figures) in &self.of {
            let topic = Topic {
                case: self.case,
                subject: name,
                peer: if *name == PEER { "none" } else { PEER },
                services: 0,
                flows: 0,
                unit: self.unit,
            };
            rows.push(if *name == PEER {
                topic.row_alone("tunnel", figures)?
            } else {
                topic.row("tunnel", figures, peer)?
            });
        }
        Ok(rows)
    }
}

/// The bounds that the project sets itself.
fn checks(rows: &[Row]) -> Vec<Check> {
    let find = |case: &str, subject: &str| {
        rows.iter()
            .find(|row| row.case == case && row.subject == subject)
    };
    let mut checks = Vec::new();
    let least: &[(&str, &str, f64)] = &[
        ("stream-1-20ms", "causeway", 3.0),
        ("stream-1-20ms-down", "causeway", 3.0),
        ("stream-1-0ms", "causeway", 0.85),
        ("stream-1-0ms-down", "causeway", 0.85),
        ("stream-16-0ms", "causeway-k2", 1.3),
        ("stream-16-0ms-down", "causeway-k2", 1.3),
        ("connections", "causeway", 1.6),
        ("connections", "causeway-k2", 2.5),
    ];
    for (case, subject, bound) in least {
        if let Some(ratio) = find(case, subject).and_then(|row| row.ratio) {
            let claim = format!("tunnel: {case}, {subject} / {PEER}");
            checks.push(Check::at_least(claim, ratio, *bound));
        }
    }
    if let Some(ratio) = find("memory-2000", "causeway").and_then(|row| row.ratio) {
        let claim = format!("tunnel: memory-2000, causeway / {PEER}");
        checks.push(Check::at_most(claim, ratio, 0.5));
    }
    for (case, bound) in [("echo-p99", 2.0), ("recover", 2.0)] {
        for subject in ["causeway", "causeway-k2"] {
            if let Some(row) = find(case, subject) {
                let claim = format!("tunnel: {case}, {subject}, {}", row.unit);
                checks.push(Check::at_most(claim, row.value, bound));
            }
        }
    }
    checks
}
