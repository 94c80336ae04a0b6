use std::path::Path;

use super::*;
use crate::oracle::question::targets;

const ONE: &str = r#"
[[difference]]
id = "cluster-from-outside"
rule = "nobody outside"
source = "ARCHITECTURE.md"
from = ["outside"]
at = ["cluster"]
outcome = { reference = ["answered"], causeway = ["timed-out"] }
"#;

fn outcome(reference: Kind, causeway: Kind) -> Aspect {
    Aspect::Outcome {
        reference: BTreeSet::from([reference]),
        causeway: BTreeSet::from([causeway]),
    }
}

#[test]
fn a_difference_explains_what_it_says_and_no_more() {
    let list = Differences::parse(ONE).unwrap();
    let scenario = Scenario::draw(3);
    let targets = targets(&scenario);
    let cluster = targets.iter().find(|one| one.at == At::Cluster).unwrap();
    let node_port = targets.iter().find(|one| one.at == At::NodePort).unwrap();
    let explains =
        |place, target, aspect: &Aspect| list.explain(&scenario, place, target, aspect).is_some();
    let dropped = outcome(Kind::Answered, Kind::TimedOut);
    assert!(explains(Place::Outside(1), cluster, &dropped));
    assert!(!explains(Place::Pod(1), cluster, &dropped));
    assert!(!explains(Place::Outside(1), node_port, &dropped));
    assert!(!explains(
        Place::Outside(1),
        cluster,
        &outcome(Kind::TimedOut, Kind::Answered)
    ));
    assert!(!explains(
        Place::Outside(1),
        cluster,
        &outcome(Kind::Answered, Kind::Refused)
    ));
    let affinity = Aspect::Affinity {
        reference: 1,
        causeway: 2,
    };
    assert!(!explains(Place::Outside(1), cluster, &affinity));
}

#[test]
fn a_list_that_is_not_clear_is_refused() {
    for (from, to, why) in [
        ("rule = \"nobody outside\"\n", "", "rule"),
        ("at = [\"cluster\"]", "at = [\"clusters\"]", "clusters"),
        (
            "outcome = ",
            "backends = { reference = true, causeway = false }\noutcome = ",
            "one of",
        ),
        (
            "outcome = { reference = [\"answered\"], causeway = [\"timed-out\"] }",
            "",
            "one of",
        ),
        ("from = [\"outside\"]", "form = [\"outside\"]", "form"),
    ] {
        assert!(ONE.contains(from));
        let error = Differences::parse(&ONE.replace(from, to)).unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
    assert!(Differences::parse(&ONE.repeat(2)).is_err());
}

#[test]
fn facts_are_about_the_server_and_the_service() {
    let scenario = Scenario::draw(3);
    let targets = targets(&scenario);
    let target = targets.iter().find(|one| one.at == At::NodePort).unwrap();
    let seen = |backend: &str| Aspect::Source {
        backend: backend.to_owned(),
        reference: BTreeSet::new(),
        causeway: BTreeSet::new(),
    };
    let of = |place, backend| facts(&scenario, place, target, &seen(backend));
    assert!(
        of(Place::Pod(1), "pod1:7007").is_superset(&BTreeSet::from([Fact::Itself, Fact::SameNode]))
    );
    assert!(of(Place::Pod(1), "pod2:7007").contains(&Fact::SameNode));
    assert!(!of(Place::Pod(1), "pod3:7007").contains(&Fact::SameNode));
    assert!(
        of(Place::Pod(3), "node2:7007")
            .is_superset(&BTreeSet::from([Fact::OnHost, Fact::SameNode]))
    );
    let own = Place::Node(target.node.unwrap());
    assert!(
        facts(
            &scenario,
            own,
            target,
            &outcome(Kind::Refused, Kind::Answered)
        )
        .contains(&Fact::OwnNode)
    );
}

#[test]
fn each_rule_that_is_checked_in_says_where_it_stands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for difference in Differences::checked_in().unwrap().list {
        let Difference {
            id, rule, source, ..
        } = difference;
        assert!(rule.len() > 20, "{id}: {rule}");
        let page = source.split('#').next().unwrap_or_default();
        let known = page.starts_with("https://kubernetes.io/")
            || page.starts_with("https://github.com/kubernetes/")
            || root.join(page).is_file();
        assert!(known, "{id}: {source}");
    }
}
