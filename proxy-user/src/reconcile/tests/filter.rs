//! Filter bits and what still needs them.

use super::*;

#[test]
fn the_sweeper_clears_only_what_nobody_needs() {
    use proxy_common::abi::{Addr4, Flow, FlowKey, V4, flow_state};
    let frontends = vec![at("10.96.0.10", 80, Reach::Cluster)];
    let web = service(
        "web",
        Protocol::Tcp,
        frontends,
        vec![endpoint("10.1.0.1", 80)],
    );
    let mut world = World::new();
    world.round(&state([web]));
    let (plan, ..) = world.round(&state([]));
    let v4 = |text: &str| Addr4::from(text.parse::<std::net::Ipv4Addr>().unwrap());
    let key = FlowKey::<V4> {
        source: v4("10.1.0.9"),
        destination: v4("10.96.0.10"),
        ..FlowKey::default()
    };
    let flow = Flow::<V4> {
        state: flow_state::ORIGINAL,
        ..Flow::default()
    };
    let mut flows = FilterWords::default();
    flows.add_flow(&key, &flow);
    for op in clear_filter(&world.observed, &plan, &flows) {
        world.observed.apply(&op);
    }
    let holds = |world: &World, kind, address: &str| {
        let (position, bit) = filter_position(kind, &v4(address));
        world.observed.filter.word(position) & bit != 0
    };
    assert!(
        holds(&world, FilterKind::Destination, "10.96.0.10"),
        "a flow is left"
    );
    assert!(!holds(&world, FilterKind::Source, "10.1.0.1"), "nobody");
    assert!(
        holds(&world, FilterKind::Destination, "192.0.2.11"),
        "the plan"
    );
    for op in clear_filter(&world.observed, &plan, &FilterWords::default()) {
        world.observed.apply(&op);
    }
    assert!(!holds(&world, FilterKind::Destination, "10.96.0.10"));
    assert!(clear_filter(&world.observed, &plan, &FilterWords::default()).is_empty());
}
