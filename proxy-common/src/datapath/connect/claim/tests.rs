//! The two entries of a connection undo each other.

use proptest::prelude::*;

use super::{fill_answer, fill_original, port_delta};
use crate::abi::{Addr4, Addr6, Family, FlowKey, V4, V6};
use crate::datapath::connect::Draft;
use crate::wire::{Be16, Delta};

/// A draft of a connection: client, service, source and destination that the backend sees.
fn draft<F: Family>(addresses: [F::Addr; 4], ports: [u16; 4]) -> Draft<F> {
    let [client, service, source, destination] = addresses;
    let [client_port, service_port, source_port, port] = ports;
    let mut draft = Draft::<F> {
        key: FlowKey {
            source: client,
            destination: service,
            source_port: Be16::new(client_port),
            destination_port: Be16::new(service_port),
            protocol: 6,
            pad: [0; 3],
        },
        source,
        destination,
        ..Draft::default()
    };
    draft.backend.port = Be16::new(port);
    draft.answer = FlowKey {
        source: destination,
        destination: source,
        source_port: Be16::new(port),
        destination_port: Be16::new(source_port),
        protocol: 6,
        pad: [0; 3],
    };
    draft
}

fn pair_undoes_itself<F: Family>(mut draft: Draft<F>, check: u16) -> Result<(), TestCaseError> {
    fill_answer(&mut draft, 7);
    draft.flow.port_delta = port_delta(&draft.answer, &draft.flow);
    let answer = draft.flow;
    fill_original(&mut draft);
    let original = draft.flow;

    prop_assert_eq!(original.peer_key(6), draft.answer);
    prop_assert_eq!(answer.peer_key(6), draft.key);
    // What answers the rewritten packet is restored to what answers the packet as it came.
    let restored = FlowKey::<F> {
        source: answer.source,
        destination: answer.destination,
        source_port: answer.source_port,
        destination_port: answer.destination_port,
        protocol: 6,
        pad: [0; 3],
    };
    prop_assert_eq!(restored, draft.key.reversed());
    // And so are the checksums.
    for (there, back) in [
        (original.address_delta, answer.address_delta),
        (original.port_delta, answer.port_delta),
    ] {
        let changed = Delta::from_raw(there).apply(check);
        prop_assert_eq!(Delta::from_raw(back).apply(changed), check);
    }
    prop_assert_eq!((original.last_seen, answer.last_seen), (7, 7));
    Ok(())
}

proptest! {
    #[test]
    fn v4(addresses in any::<[[u8; 4]; 4]>(), ports in any::<[u16; 4]>(), check in 1..0xffff_u16) {
        let addresses = addresses.map(Addr4::from_bytes);
        pair_undoes_itself::<V4>(draft(addresses, ports), check)?;
    }

    #[test]
    fn v6(addresses in any::<[[u8; 16]; 4]>(), ports in any::<[u16; 4]>(), check in 1..0xffff_u16) {
        let addresses = addresses.map(Addr6::from_bytes);
        pair_undoes_itself::<V6>(draft(addresses, ports), check)?;
    }
}
