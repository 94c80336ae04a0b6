//! Where a rewritten packet goes next.

use crate::abi::{DeviceKey, DeviceRole, Family, Flow, FlowStep};
use crate::wire::MacAddr;

use super::tables::FamilyTables;

/// A question to the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery<'a, F: Family> {
    /// Source of the packet as it leaves.
    pub source: &'a F::Addr,
    /// Destination of the packet as it leaves.
    pub destination: &'a F::Addr,
    /// Transport protocol.
    pub protocol: u8,
    /// The device that the packet came in on, which decides forwarding and policy routes.
    pub ifindex: u32,
}

/// The answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// What to do; [`FlowStep::Resolve`] means that there is no route.
    pub step: FlowStep,
    /// The device that the packet leaves by.
    pub ifindex: u32,
    /// What that device is to us.
    pub role: DeviceRole,
    /// Link-layer address of the next hop.
    pub link_destination: MacAddr,
    /// Link-layer address of the device.
    pub link_source: MacAddr,
    /// The device's MTU, bytes; zero: not known.
    pub mtu: u32,
}

/// Asks for the next hop of a packet that will be from `source` to `destination`.
///
/// A tagged frame belongs to the VLAN device above the hook's device. It can be sent on from here
/// only through the same VLAN, where its tags stay right; otherwise the hook of the VLAN device, which
/// sees it without tags, has to do it, and the step is [`FlowStep::Resolve`].
///
/// The answer is kept for all packets of a flow, and these may come in by different devices: whether a
/// packet goes back where it came from is asked of each packet ([`xdp_sends`]), not here.
#[inline(always)]
pub(super) fn next_hop<F: Family, T: FamilyTables<F>>(
    tables: &T,
    query: &RouteQuery<'_, F>,
    vlan: u32,
    hop: &mut Hop,
) {
    if vlan == 0 {
        tables.route(query, hop);
    } else {
        let key = DeviceKey {
            ifindex: query.ifindex,
            vlan,
        };
        let Some(device) = tables.device(&key) else {
            return;
        };
        tables.route(
            &RouteQuery {
                ifindex: device.ifindex,
                ..*query
            },
            hop,
        );
        let stays = hop.ifindex == device.ifindex
            && matches!(hop.step, FlowStep::Transmit | FlowStep::Enqueue);
        hop.step = if stays {
            FlowStep::Enqueue
        } else {
            FlowStep::Resolve
        };
        hop.ifindex = query.ifindex;
    }
}

/// Whether XDP can send a packet on that came in by `ifindex`: out of a device made for it, or back
/// out of the same device, which any can do.
#[inline(always)]
pub(super) fn xdp_sends(step: FlowStep, to: u32, ifindex: u32) -> bool {
    step == FlowStep::Transmit || (step == FlowStep::Enqueue && to == ifindex)
}

/// Whether a packet with tags can be sent on with them.
#[inline(always)]
pub(super) fn keeps_tags(step: FlowStep) -> bool {
    matches!(step, FlowStep::Transmit | FlowStep::Enqueue)
}

/// Asks for the next hop of a flow anew and stores the answer in it.
#[inline(never)]
pub(super) fn refresh<F: Family, T: FamilyTables<F>>(
    tables: &T,
    flow: &mut Flow<F>,
    protocol: u8,
    ifindex: u32,
    vlan: u32,
) {
    let query = RouteQuery {
        source: &flow.source,
        destination: &flow.destination,
        protocol,
        ifindex,
    };
    let mut hop = Hop::default();
    next_hop::<F, T>(tables, &query, vlan, &mut hop);
    store(flow, &hop, vlan);
}

#[inline(always)]
pub(super) fn store<F: Family>(flow: &mut Flow<F>, hop: &Hop, vlan: u32) {
    flow.ifindex = hop.ifindex;
    flow.vlan = vlan;
    flow.link_destination = hop.link_destination;
    flow.link_source = hop.link_source;
    flow.step = hop.step as u8;
    flow.mtu = u16::try_from(hop.mtu).unwrap_or(u16::MAX);
}
