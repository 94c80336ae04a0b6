use proptest::prelude::*;

use super::*;

const CLIENT: Place = Place::Outside(1);

fn answered(backend: &str, source: &str) -> End {
    End::Answered {
        backend: backend.to_owned(),
        source: source.parse().unwrap(),
    }
}

fn answer(ends: &[End]) -> Answer {
    Answer(ends.iter().cloned().collect())
}

fn differ(reference: &[End], causeway: &[End]) -> Vec<Aspect> {
    let [reference, causeway] = [reference, causeway].map(answer);
    let pair = Pair {
        reference: &reference,
        causeway: &causeway,
    };
    compare(CLIENT, pair, None)
}

#[test]
fn an_outcome_comes_before_everything_else() {
    let found = differ(&[answered("pod1:7007", "198.51.100.10")], &[End::TimedOut]);
    let [
        Aspect::Outcome {
            reference,
            causeway,
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}");
    };
    assert_eq!(*reference, BTreeSet::from([Kind::Answered]));
    assert_eq!(*causeway, BTreeSet::from([Kind::TimedOut]));
    // An answer beside silence is not the same as an answer.
    let both = [answered("pod1:7007", "198.51.100.10"), End::TimedOut];
    assert_eq!(differ(&both[..1], &both).len(), 1);
    assert!(differ(&both, &both).is_empty());
}

#[test]
fn each_backend_and_what_it_saw_counts() {
    let both = [
        answered("pod1:7007", "192.0.2.11"),
        answered("pod3:7007", "192.0.2.11"),
    ];
    let found = differ(&both, &both[..1]);
    let [
        Aspect::Backends {
            reference,
            causeway,
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}");
    };
    assert_eq!(*reference, BTreeSet::from(["pod3:7007".to_owned()]));
    assert!(causeway.is_empty());

    let kept = [answered("pod1:7007", "198.51.100.10"), both[1].clone()];
    let found = differ(&both, &kept);
    let [
        Aspect::Source {
            backend,
            reference,
            causeway,
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}");
    };
    assert_eq!(backend, "pod1:7007");
    assert_eq!(*reference, BTreeSet::from([Whose::Node]));
    assert_eq!(*causeway, BTreeSet::from([Whose::Client]));
    // Two nodes' addresses are not one.
    assert_eq!(
        differ(&both[..1], &[answered("pod1:7007", "192.0.2.12")]).len(),
        1
    );
}

#[test]
fn with_affinity_any_one_that_the_twin_has_will_do() {
    let all = [
        answered("pod1:7007", "192.0.2.11"),
        answered("pod2:7007", "198.51.100.10"),
        answered("pod3:7007", "192.0.2.11"),
    ];
    let twin = answer(&all);
    let differ = |reference: &[End], causeway: &[End]| {
        let [reference, causeway] = [reference, causeway].map(answer);
        let twin = Pair {
            reference: &twin,
            causeway: &twin,
        };
        compare(
            CLIENT,
            Pair {
                reference: &reference,
                causeway: &causeway,
            },
            Some(twin),
        )
    };
    assert!(differ(&all[..1], &all[1..2]).is_empty());
    assert!(matches!(
        differ(&all[..1], &all[..2]).as_slice(),
        [Aspect::Affinity {
            reference: 1,
            causeway: 2
        }]
    ));
    let stranger = [answered("pod4:7007", "192.0.2.11")];
    assert!(matches!(
        differ(&all[..1], &stranger).as_slice(),
        [Aspect::Backends { .. }]
    ));
    let translated = [answered("pod2:7007", "192.0.2.11")];
    assert!(matches!(
        differ(&all[..1], &translated).as_slice(),
        [Aspect::Source { .. }]
    ));
}

#[test]
fn addresses_are_of_clients_of_nodes_or_of_others() {
    let whose = |text: &str| Whose::of(text.parse().unwrap(), Place::Pod(1));
    assert_eq!(whose("10.244.1.11"), Whose::Client);
    assert_eq!(whose("2001:db8:2::12"), Whose::Node);
    assert_eq!(whose("10.244.2.13"), Whose::Other);
    assert_eq!(
        Whose::of("192.0.2.11".parse().unwrap(), Place::Node(1)),
        Whose::Client
    );
}

fn ends() -> impl Strategy<Value = Answer> {
    let backend = prop::sample::select(vec!["pod1:7007", "pod2:7007", "pod3:7008"]);
    let source = prop::sample::select(vec!["198.51.100.10", "192.0.2.11", "10.244.1.11"]);
    let end = prop_oneof![
        (backend, source).prop_map(|(backend, source)| answered(backend, source)),
        Just(End::Refused),
        Just(End::TimedOut),
    ];
    prop::collection::btree_set(end, 1..4).prop_map(Answer)
}

proptest! {
    #[test]
    fn only_equal_answers_do_not_differ(reference in ends(), causeway in ends()) {
        let pair = Pair { reference: &reference, causeway: &causeway };
        prop_assert_eq!(compare(CLIENT, pair, None).is_empty(), reference == causeway);
    }
}
