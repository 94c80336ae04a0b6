//! Manifests that are wrong: what was good stays in force, and what is wrong is said.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    ask::{self, Means},
    cluster::{Cluster, Hook},
    layout::{Family, Layout},
    manifest::{self, Service},
};

use crate::worlds;

/// Name, what is replaced in the good file of a service by what, and a word that `causeway status`
/// must say besides the file's name and the line of the mistake.
const BAD: [(&str, &str, &str, &str); 3] = [
    ("not-yaml", "\"ipFamilies\": [", "\"ipFamilies\": [[[", ""),
    ("wrong-port", "\"port\": 80,", "\"port\": 99999,", "port"),
    (
        "wrong-address",
        "\"fd00:96::10\"",
        "\"fd00:96::zz\"",
        "clusterIPs",
    ),
];

pub(crate) fn trials() -> Vec<Trial> {
    vec![Trial::test(
        "manifests/bad-ones-change-nothing-and-are-shown",
        || Ok(run()?),
    )]
}

fn run() -> Result<()> {
    let service = Service::balanced("near", 10, &[1]);
    let cluster = worlds::serve(Layout::STANDARD, Hook::Tc, std::slice::from_ref(&service))?;
    let path = Cluster::manifests_of(cluster.world())?.join(worlds::file(&service));
    let good = fs::read_to_string(&path)?;
    for (name, right, wrong, word) in BAD {
        let (before, after) = good
            .split_once(right)
            .context("the good file has changed")?;
        manifest::replace(&path, &format!("{before}{wrong}{after}"))?;
        // A syntax error is found somewhere behind the mistake.
        let line = if word.is_empty() {
            String::new()
        } else {
            line(before).to_string()
        };
        let place = format!("service-near.yaml:{line}");
        wait_for_status(&cluster, name, |status| {
            status.contains(&place) && status.contains(word)
        })?;
        still_served(&cluster, &service).with_context(|| name)?;
        manifest::replace(&path, &good)?;
        wait_for_status(&cluster, name, |status| {
            !status.contains("service-near.yaml")
        })?;
        still_served(&cluster, &service).with_context(|| format!("after {name}"))?;
    }
    Ok(())
}

/// The line that the next character after `text` is on.
fn line(text: &str) -> usize {
    text.matches('\n').count() + 1
}

fn wait_for_status(cluster: &Cluster, name: &str, good: impl Fn(&str) -> bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let status = cluster.daemon(1)?.command(cluster.world(), &["status"])?;
        if good(&status) {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(5) {
            bail!("{name}: after 5 s, `causeway status` still says:\n{status}");
        }
        sleep(Duration::from_millis(20));
    }
}

fn still_served(cluster: &Cluster, service: &Service) -> Result<()> {
    for family in Family::BOTH {
        let target = service.balancer(Means::Http, family);
        let client = cluster.world().client();
        let attempt = ask::ask(&client, Means::Http, target, Duration::from_secs(3))?;
        ensure!(
            attempt.outcome.pod() == Some("pod1"),
            "{target}: {}",
            attempt.outcome
        );
    }
    Ok(())
}
