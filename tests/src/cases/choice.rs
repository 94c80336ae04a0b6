//! Which backend: at random or by table, with weights, and records that change meanwhile.

use super::{Entry, Net, both, tuple};
use crate::case::place::{Host, Next, device};
use crate::case::world::{Reach, TICK};
use crate::case::{Case, Connection, Hook, World};
use crate::packet::{Packet, number};
use proxy_common::abi::{Family, V4, V6, service_flag};
use proxy_common::datapath::{Reason, choice};
use proxy_user::simulation::Tuple;

pub(super) const CASES: &[Entry] = &[
    both("random_spreads_ports", random),
    both("random_follows_the_nodes_seed", seeded),
    both("random_follows_the_time", timed),
    both("maglev_is_the_same_on_every_node", maglev),
    both("weights_are_numbers_of_slots", weights),
    both("slot_of_another_service_is_not_used", torn),
    both("slot_past_the_table_is_not_used", past_slots),
    both("backend_past_the_table_is_not_used", past_backends),
];

const BACKENDS: [(Host, u16); 3] = [
    (Host::RemoteA, 8080),
    (Host::RemoteB, 8080),
    (Host::RemoteC, 8080),
];

fn world(net: Net) -> World {
    net.serving((Host::Cluster, 80), Reach::Cluster, &BACKENDS)
}

fn hash<F: Family>(tuple: &Tuple, seed: u32) -> u32 {
    choice::tuple_hash::<F>(&tuple.key(), seed)
}

/// The backend that a slot table and a hash lead to, by hand.
fn chosen(world: &World, tuple: &Tuple, seed: u32) -> u32 {
    let Some(service) = world.services.get(&(tuple.destination, tuple.protocol)) else {
        return 0;
    };
    let hash = if tuple.source.is_ipv4() {
        hash::<V4>(tuple, seed)
    } else {
        hash::<V6>(tuple, seed)
    };
    // Multiply and shift: the hash as a fraction of 2^32.
    let slot = u64::from(hash) * u64::from(service.slots) / (1 << 32);
    let slot = service.first_slot + u32::try_from(slot).unwrap_or_default();
    world.slots.get(&slot).copied().unwrap_or_default()
}

/// Opens connections from some ports; says which backends they met.
fn open(net: Net, case: &mut Case, ports: std::ops::Range<u16>, seed: u32) -> Vec<u32> {
    let service = net.at(Host::Cluster, 80);
    let mut met = Vec::new();
    for port in ports {
        let client = net.at(Host::PodA, port);
        let sent = tuple(number::TCP, client, service);
        let backend = chosen(&case.world, &sent, seed);
        let (host, port) = BACKENDS
            .get(backend as usize - 1)
            .copied()
            // Where there is none, the case fails by what it shows.
            .unwrap_or((Host::Nowhere, 0));
        let rewritten = tuple(number::TCP, client, net.at(host, port));
        let made = Connection::new(&case.world, sent, rewritten, backend, Next::peer());
        case.opens(
            Hook::Ingress,
            device::POD_A,
            &Packet::syn(client, service),
            &made,
        );
        met.push(backend);
    }
    met
}

fn random(net: Net) -> Case {
    let mut case = Case::new(world(net));
    let seed = case.world.settings.seed + TICK;
    let mut met = open(net, &mut case, 40_000..40_024, seed);
    met.sort_unstable();
    met.dedup();
    assert_eq!(met, [1, 2, 3], "the case is not about what it says");
    case
}

fn seeded(net: Net) -> Case {
    let mut case = Case::new(world(net));
    case.world.settings.seed = 0xdead_beef;
    open(
        net,
        &mut case,
        40_000..40_008,
        0xdead_beef_u32.wrapping_add(TICK),
    );
    case
}

fn timed(net: Net) -> Case {
    let mut case = Case::new(world(net));
    case.world.tick = TICK + 1;
    let seed = case.world.settings.seed + TICK + 1;
    open(net, &mut case, 40_000..40_008, seed);
    case
}

fn maglev(net: Net) -> Case {
    let mut world = world(net);
    for service in world.services.values_mut() {
        service.flags |= service_flag::MAGLEV;
    }
    let mut case = Case::new(world);
    case.world.settings.seed = 0x1234_5678;
    open(net, &mut case, 40_000..40_016, 0);
    case
}

fn weights(net: Net) -> Case {
    let mut world = world(net);
    // The first backend has six of eight slots.
    world.slots = (1..).zip([1, 1, 2, 1, 1, 3, 1, 1]).collect();
    for service in world.services.values_mut() {
        service.slots = 8;
    }
    let mut case = Case::new(world);
    let seed = case.world.settings.seed + TICK;
    let met = open(net, &mut case, 40_000..40_024, seed);
    let first = met.iter().filter(|backend| **backend == 1).count();
    assert!(first > 12, "the case is not about what it says: {met:?}");
    case
}

fn unusable(net: Net, edit: impl Fn(&mut World)) -> Case {
    let mut world = net.serving(
        (Host::Cluster, 80),
        Reach::Cluster,
        &[(Host::RemoteA, 8080)],
    );
    edit(&mut world);
    let mut case = Case::new(world);
    let syn = Packet::syn(net.at(Host::PodA, 40_000), net.at(Host::Cluster, 80));
    case.send(Hook::Ingress, device::POD_A, &syn)
        .drops(Reason::Changing);
    case
}

fn torn(net: Net) -> Case {
    unusable(net, |world| {
        for backend in world.backends.values_mut() {
            backend.service += 1;
        }
    })
}

fn past_slots(net: Net) -> Case {
    unusable(net, |world| {
        for service in world.services.values_mut() {
            service.first_slot = u32::MAX;
        }
    })
}

fn past_backends(net: Net) -> Case {
    unusable(net, |world| {
        world.slots.insert(1, 1 << 20);
    })
}
