//! What sockets find at loopback addresses.

use super::*;

/// The wildcard addresses at which a port is served, in place of the loopback addresses.
fn places(frontend: Frontend, change: impl FnOnce(&mut Options)) -> Vec<IpAddr> {
    let web = service(
        "web",
        Protocol::Tcp,
        vec![frontend],
        vec![endpoint("10.244.1.10", 8080), endpoint("fd00::10", 8080)],
    );
    let mut options = options();
    options.sockets = true;
    change(&mut options);
    let now = Instant::now();
    let mut allocation = Allocation::restore(&Observed::default(), CAPACITY, now);
    let (plan, report) = compile(&state([web]), &facts(), &options, &mut allocation, now);
    assert_eq!(report, Report::default());
    let v4 = plan.services_v4.keys().map(|key| key.address.to_ip());
    let v6 = plan.services_v6.keys().map(|key| key.address.to_ip());
    v4.chain(v6).filter(IpAddr::is_unspecified).collect()
}

#[test]
fn ports_of_the_node_are_served_at_loopback_addresses_to_sockets_alone() {
    let node_port = Frontend::NodePort {
        port: 30_080,
        v4: true,
        v6: true,
    };
    let host_port = |address: &str| Frontend::HostPort {
        address: ip(address),
        port: 8_000,
    };
    let both = [ip("0.0.0.0"), ip("::")];
    let nowhere: [IpAddr; 0] = [];
    assert_eq!(places(node_port, |_| {}), both);
    assert_eq!(
        places(node_port, |options| options.sockets = false),
        nowhere
    );
    assert_eq!(places(host_port("0.0.0.0"), |_| {}), both[..1]);
    assert_eq!(places(host_port("::"), |_| {}), both[1..]);
    assert_eq!(places(host_port("127.0.0.1"), |_| {}), nowhere);
    assert_eq!(
        places(at("192.0.2.11", 80, Reach::Everywhere), |_| {}),
        nowhere
    );
    let ranges = |range: &str| vec![range.parse().unwrap()];
    let outside = |options: &mut Options| options.node_port_ranges = ranges("192.0.2.0/24");
    assert_eq!(places(node_port, outside), nowhere);
    let inside = |options: &mut Options| options.node_port_ranges = ranges("127.0.0.0/8");
    assert_eq!(places(node_port, inside), both[..1]);
}
