//! A row per rule. `r` ready, `t` terminating and serving, `d` terminating and not serving, `n` not
//! ready; `@` the node, `>` hints for nodes, `~` hints for zones, `x0` without weight.

use std::net::IpAddr;

use super::*;

fn endpoint(place: usize, text: &str) -> Endpoint {
    let mut endpoint = Endpoint {
        address: IpAddr::from([10, 0, 0, u8::try_from(place).unwrap()]),
        port: 80,
        weight: 1,
        ready: false,
        serving: false,
        terminating: false,
        node: None,
        hints: None,
    };
    let mut hints = Hints::default();
    let (state, mut rest) = text.split_at(1);
    match state {
        "r" => (endpoint.ready, endpoint.serving) = (true, true),
        "t" => (endpoint.serving, endpoint.terminating) = (true, true),
        "d" => endpoint.terminating = true,
        "n" => {}
        other => panic!("{other}"),
    }
    while let Some(kind) = rest.chars().next() {
        let end = rest[1..]
            .find(['@', '>', '~', 'x'])
            .map_or(rest.len(), |at| at + 1);
        let (word, after) = rest.split_at(end);
        let word = word[1..].to_owned();
        match kind {
            '@' => endpoint.node = Some(word.into()),
            '>' => hints.nodes.push(word),
            '~' => hints.zones.push(word),
            'x' => endpoint.weight = word.parse().unwrap(),
            other => panic!("{other}"),
        }
        rest = after;
    }
    if hints != Hints::default() {
        endpoint.hints = Some(hints.into());
    }
    endpoint
}

fn selected(text: &str) -> Selection {
    let words = text.split_whitespace().enumerate();
    let endpoints: Vec<Endpoint> = words.map(|(place, word)| endpoint(place, word)).collect();
    let here = Here {
        node: "a",
        zone: Some("east"),
    };
    select(&endpoints.iter().collect::<Vec<_>>(), here)
}

#[test]
fn who_is_chosen() {
    type Row = (&'static str, &'static [usize], &'static [usize]);
    let rows: &[Row] = &[
        // Endpoints; the cluster's; this node's.
        ("", &[], &[]),
        ("r@a", &[0], &[0]),
        ("r@b", &[0], &[]),
        ("r", &[0], &[]),
        ("n@a", &[], &[]),
        ("d@a", &[], &[]),
        ("t@a", &[0], &[0]),
        ("r@b r@a", &[0, 1], &[1]),
        // Ready ones first; those that terminate only if there is none, each set by itself.
        ("t@a r@a", &[1], &[1]),
        ("t@a r@b", &[1], &[0]),
        ("t@b r@a", &[1], &[1]),
        ("t@b t@a d@a", &[0, 1], &[1]),
        ("n@a t@b", &[1], &[]),
        // Hints for nodes, before those for zones.
        ("r@a>a r@b>b", &[0], &[0]),
        ("r@b>a r@b>b", &[0], &[]),
        ("r@b>b r@c>c", &[0, 1], &[]),
        ("r@a>a r@b", &[0, 1], &[0]),
        ("r@b>a~west r@c>c~east", &[0], &[]),
        ("r@b>b~west r@c>c~east", &[1], &[]),
        // Hints for zones.
        ("r@b~east r@c~west", &[0], &[]),
        ("r@b~east~west r@c~west", &[0], &[]),
        ("r@b~north r@c~west", &[0, 1], &[]),
        ("r@b~east r@c", &[0, 1], &[]),
        // They narrow down the cluster's endpoints only: on this node all are used.
        ("r@a~west r@b~east", &[1], &[0]),
        // One that isn't ready need have none, and is in no set.
        ("r@b~east n@c r@c~west", &[0], &[]),
        ("r@b~east t@c r@c~west", &[0], &[]),
        // Those that terminate are used whatever their hints.
        ("t@b~west t@c~east", &[0, 1], &[]),
        // Without weight nobody chooses it; another in the same zone takes all.
        ("r@ax0 r@b", &[1], &[]),
        ("r@ax0 t@a", &[1], &[1]),
        ("r@b~eastx0 r@c~west", &[1], &[]),
    ];
    for (text, cluster, local) in rows {
        let found = selected(text);
        assert_eq!(found.cluster, *cluster, "cluster: {text}");
        assert_eq!(found.local, *local, "local: {text}");
        let serves = |place: &usize| found.serving.contains(place);
        assert!(cluster.iter().chain(*local).all(serves), "{text}");
        assert_eq!(
            found.cluster.is_empty(),
            found.serving.is_empty(),
            "hints never leave nobody: {text}"
        );
    }
    // What topology leaves out serves all the same.
    assert_eq!(selected("r@b~east r@c~west").serving, [0, 1]);
    assert_eq!(selected("t@a r@b").serving, [0, 1]);
}

#[test]
fn without_a_zone_hints_for_zones_are_not_followed() {
    let endpoints = [endpoint(0, "r@b~east"), endpoint(1, "r@c~west")];
    let here = Here {
        node: "a",
        zone: None,
    };
    let found = select(&endpoints.iter().collect::<Vec<_>>(), here);
    assert_eq!(found.cluster, [0, 1]);
}

#[test]
fn what_becomes_of_a_connection() {
    use Client::{Inside, Outside};
    use Outcome::{Cluster, Drop, Local, Reject, ShortCircuit};
    use Reach::Everywhere;
    use TrafficPolicy::{Cluster as Any, Local as Here};
    let at_cluster = Reach::Cluster;
    // Endpoints; internal and external policy; address; then for a client inside, and outside.
    let rows = [
        // Nobody serves anywhere: refused, whatever the policies.
        ("n@a d@b", Any, Any, at_cluster, Reject, Reject),
        ("n@a d@b", Here, Here, at_cluster, Reject, Reject),
        ("n@a d@b", Any, Any, Everywhere, Reject, Reject),
        ("n@a d@b", Here, Here, Everywhere, Reject, Reject),
        // Cluster: any endpoint.
        ("r@a r@b", Any, Here, at_cluster, Cluster, Cluster),
        ("r@a r@b", Here, Any, Everywhere, Cluster, Cluster),
        ("r@b", Any, Any, Everywhere, Cluster, Cluster),
        // Local: this node's.
        ("r@a r@b", Here, Any, at_cluster, Local, Local),
        ("r@a r@b", Any, Here, Everywhere, ShortCircuit, Local),
        // And there is none here.
        ("r@b", Here, Any, at_cluster, Drop, Drop),
        ("r@b", Any, Here, Everywhere, ShortCircuit, Drop),
        // One that terminates here is better than none, though others are ready elsewhere.
        ("t@a r@b", Here, Any, at_cluster, Local, Local),
        ("t@a r@b", Any, Here, Everywhere, ShortCircuit, Local),
        ("n@a t@b", Any, Here, Everywhere, ShortCircuit, Drop),
    ];
    for (text, internal, external, at, inside, outside) in rows {
        let policies = Policies { internal, external };
        let found = selected(text);
        let outcome = |from| found.outcome(policies, at, from);
        let message = format!("{text} {policies:?} {at:?}");
        assert_eq!(outcome(Inside), inside, "inside: {message}");
        assert_eq!(outcome(Outside), outside, "outside: {message}");
    }
}
