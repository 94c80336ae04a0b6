//! The first packet of a connection: service, backend, route, source translation, two entries.

mod claim;
mod client;

use crate::abi::{
    Address, Affinity, AffinityKey, Backend, Device, DeviceKey, DeviceRole, Family, Flow, FlowKey,
    FlowStep, Service, ServiceKey, SourceKey, address_flag, flow_state, service_flag,
};
use crate::wire::{Frame, IpHeader, MacAddr, protocol, tcp_flag};

use super::flow::{self, Arrival, is_stale};
use super::headers::{self, Layout, Transport};
use super::tables::FamilyTables;
use super::verdict::{Event, Reason, Verdict, counted};
use super::{Hook, Hop, RouteQuery, choice, forward, refuse, selection};

/// A connection in the making. In the kernel it lies in a per-CPU map: a hook's stack is 512 bytes,
/// those of all functions that are called together.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Draft<F: Family> {
    flow: Flow<F>,
    key: FlowKey<F>,
    answer: FlowKey<F>,
    destination: F::Addr,
    backend: Backend,
    service: Service,
    question: SourceKey<F>,
    client: AffinityKey<F>,
    affinity: Affinity,
    hop: Hop,
    source: F::Addr,
    index: u32,
    layout: Layout,
    ifindex: u32,
    link_destination: MacAddr,
    /// The source is this node's address instead of the client's.
    translated: bool,
    /// See [`flow_state::LOOPBACK`].
    loopback: bool,
    opener: Client,
    tcp_flags: u8,
    /// The client is led to endpoints on this node alone.
    local: bool,
    /// Of the next hop, for a packet that is too large for it; else zero.
    mtu: u16,
}

/// Who opens the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
enum Client {
    #[default]
    Outside,
    Pod,
    ThisNode,
}

/// What was decided: a number, as for [`Verdict`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Admission(u64);

impl Admission {
    const REFUSE: u64 = 1 << 63;

    /// There are flow entries now.
    const MADE: Self = Self(u64::MAX);

    /// The next step decides.
    const NEXT: Self = Self(u64::MAX - 1);

    /// All there is to do.
    #[inline(always)]
    const fn verdict(verdict: Verdict) -> Self {
        Self(verdict.raw())
    }

    /// The packet goes no further, without an answer.
    #[inline(always)]
    const fn drop(reason: Reason) -> Self {
        Self::verdict(Verdict::drop(reason))
    }

    /// The packet goes no further, and is answered in the service's name.
    #[inline(always)]
    const fn refuse(reason: Reason) -> Self {
        Self(Self::REFUSE | Verdict::drop(reason).raw())
    }
}

/// Handles a packet that is not plain, or that no flow speaks for.
///
/// Not inlined: it has a stack of its own, and the established path stays small. Its steps are
/// functions of their own and share nothing but the draft: the verifier follows each way through a
/// step, and would follow each way through the next step for each of those if the headers' places
/// were still alive between them.
#[inline(never)]
pub(super) fn slow<H: Hook, F: Family, P: Frame, T: FamilyTables<F>>(
    frame: &mut P,
    tables: &T,
    ifindex: u32,
) -> Verdict {
    let length = frame.length();
    let Some(mut draft) = tables.draft() else {
        return counted(Verdict::drop(Reason::Changing), tables, length);
    };
    draft.ifindex = ifindex;
    draft.mtu = 0;
    match describe::<F, P, T>(frame, &mut draft, tables) {
        Content::Foreign => return Verdict::PASS,
        Content::WithoutPorts => return without_ports::<H, F, P, T>(frame, tables, &draft),
        Content::Segment => {}
    }
    let mut admission = admit::<H, F, T>(&mut draft, tables);
    if admission == Admission::NEXT {
        admission = choose(&mut draft, tables);
    }
    if admission == Admission::NEXT {
        admission = lead::<H, F, T>(&mut draft, tables);
    }
    if admission == Admission::MADE {
        let verdict = carry::<H, F, P, T>(frame, tables, &mut draft);
        if draft.mtu == 0 {
            return verdict;
        }
        admission = Admission::refuse(Reason::TooLarge);
    }
    let verdict = counted(
        Verdict::from_raw(admission.0 & !Admission::REFUSE),
        tables,
        length,
    );
    if admission.0 & Admission::REFUSE == 0
        || !refuse::refuse::<F, P>(frame, &draft.layout, draft.mtu)
    {
        return verdict;
    }
    tables.count(Event::Refused as u32, length);
    Verdict::REPLY
}

/// Whether XDP sees a frame that is meant for another host. TC has asked before
/// ([`Frame::is_for_this_host`]).
#[inline(always)]
fn is_for_another_host<H: Hook, F: Family>(draft: &Draft<F>, device: &Device) -> bool {
    H::XDP && draft.link_destination != device.mac
}

/// What [`describe`] found.
#[repr(u8)]
enum Content {
    Foreign,
    WithoutPorts,
    Segment,
}

/// Notes in the draft what the packet says.
#[inline(never)]
fn describe<F: Family, P: Frame, T: FamilyTables<F>>(
    frame: &mut P,
    draft: &mut Draft<F>,
    tables: &T,
) -> Content {
    headers::pull::<F, P>(frame);
    let Some(headers) = headers::parse::<F, P>(frame) else {
        return Content::Foreign;
    };
    if !super::is_candidate(&headers, tables) {
        return Content::Foreign;
    }
    draft.layout = Layout::of(&headers);
    draft.link_destination = headers.link.ethernet.destination;
    let Some(key) = headers.flow_key() else {
        draft.key.destination = headers.ip.destination();
        return Content::WithoutPorts;
    };
    draft.key = key;
    (_, draft.tcp_flags) = headers.transport.protocol();
    Content::Segment
}

/// Carries a packet whose flow is known to be there: as the plain path does, for any packet. One that is
/// too large for the next hop is still to be answered, and counted.
#[inline(never)]
fn carry<H: Hook, F: Family, P: Frame, T: FamilyTables<F>>(
    frame: &mut P,
    tables: &T,
    draft: &mut Draft<F>,
) -> Verdict {
    let arrival = Arrival::of(frame, draft.ifindex);
    if let Some(headers) = headers::find::<F, P>(frame, &draft.layout)
        && let Some(mut flow) = tables.flow(&draft.key)
    {
        if let Some(carried) = flow::carry::<H, F, _, T>(headers, &mut flow, tables, &arrival) {
            return flow::finish::<F, P, T>(frame, tables, &carried, &arrival);
        }
        if flow.mtu != 0 && arrival.length > u64::from(flow.mtu) {
            draft.mtu = flow.mtu;
            return Verdict::drop(Reason::TooLarge);
        }
    }
    counted(Verdict::drop(Reason::Changing), tables, arrival.length)
}

/// Echo requests and fragments to an address that belongs to services.
#[inline(never)]
fn without_ports<H: Hook, F: Family, P: Frame, T: FamilyTables<F>>(
    frame: &mut P,
    tables: &T,
    draft: &Draft<F>,
) -> Verdict {
    let length = frame.length();
    let layout = &draft.layout;
    let Some(flags) = tables.address(&draft.key.destination) else {
        return Verdict::PASS;
    };
    let key = DeviceKey {
        ifindex: draft.ifindex,
        vlan: layout.vlan,
    };
    let Some(device) = tables.device(&key) else {
        return Verdict::PASS;
    };
    if is_for_another_host::<H, F>(draft, &device) {
        return Verdict::PASS;
    }
    if flags.0 & address_flag::EXTERNAL == 0 && client::<H>(&device) == Client::Outside {
        return counted(Verdict::drop(Reason::OutsideClusterAddress), tables, length);
    }
    if layout.protocol == Layout::FRAGMENT {
        return counted(Verdict::drop(Reason::Fragment), tables, length);
    }
    if layout.options == 0
        && let Some(headers) = headers::find::<F, P>(frame, layout)
        && let Transport::Echo(icmp) = headers.transport
    {
        refuse::answer_echo::<F>(headers.link.ethernet, headers.ip, icmp);
        tables.count(Event::EchoAnswered as u32, length);
        return Verdict::REPLY;
    }
    Verdict::PASS
}

#[inline(always)]
fn client<H: Hook>(device: &Device) -> Client {
    if H::EGRESS {
        Client::ThisNode
    } else if DeviceRole::from_raw(device.role) == DeviceRole::Pod {
        Client::Pod
    } else {
        Client::Outside
    }
}

/// Decides whether there is a connection to make.
#[inline(never)]
fn admit<H: Hook, F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Admission {
    if let Some(admission) = settle(draft, tables) {
        return admission;
    }
    let key = DeviceKey {
        ifindex: draft.ifindex,
        vlan: draft.layout.vlan,
    };
    let Some(device) = tables.device(&key) else {
        return Admission::verdict(Verdict::PASS);
    };
    if is_for_another_host::<H, F>(draft, &device) {
        return Admission::verdict(Verdict::PASS);
    }
    draft.opener = client::<H>(&device);
    draft.loopback = DeviceRole::from_raw(device.role) == DeviceRole::Loopback;
    if let Some(admission) = find_service(draft, tables) {
        return admission;
    }
    if draft.tcp_flags & tcp_flag::RST != 0 {
        return Admission::drop(Reason::OutOfState);
    }
    Admission::NEXT
}

/// Chooses the backend: the one that the client is kept with, or any.
#[inline(never)]
fn choose<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Admission {
    let kept = draft.service.affinity != 0 && client::is_kept(draft, tables);
    if kept || choose_backend(draft, tables).is_some() {
        return Admission::NEXT;
    }
    Admission::drop(Reason::Changing)
}

/// Finds the way to the backend, and makes the connection.
#[inline(never)]
fn lead<H: Hook, F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Admission {
    draft.destination = F::Addr::narrow(&draft.backend.address);
    draft.hop = Hop::default();
    let query = RouteQuery {
        source: &draft.key.source,
        destination: &draft.destination,
        protocol: draft.key.protocol,
        ifindex: draft.ifindex,
    };
    forward::next_hop::<F, T>(tables, &query, draft.layout.vlan, &mut draft.hop);
    let step = draft.hop.step;
    if draft.layout.vlan != 0 && !forward::keeps_tags(step) {
        return Admission::verdict(Verdict::PASS);
    }
    if H::XDP && !forward::xdp_sends(step, draft.hop.ifindex, draft.ifindex) {
        return Admission::verdict(Verdict::PASS);
    }
    if step == FlowStep::Resolve {
        return Admission::drop(Reason::NoRoute);
    }
    // What is led to this node's endpoints alone is answered by this node, however they are reached.
    let leaves = draft.opener == Client::Outside
        && !draft.local
        && draft.hop.role != DeviceRole::Pod
        && step != FlowStep::Local;
    // This node's own processes may talk to themselves: their source is this node's already.
    let hairpin = draft.opener == Client::Pod && draft.destination == draft.key.source;
    // A process that asks for a loopback address, from one: no answer would come back to that.
    let homebound = draft.opener == Client::ThisNode
        && step != FlowStep::Local
        && draft.key.source.is_loopback();
    draft.translated = leaves || hairpin || homebound;
    draft.source = draft.key.source;
    if draft.translated {
        draft.source = egress_address::<F, T>(tables, &draft.hop, draft.layout.vlan);
        if draft.source == F::Addr::default() {
            return Admission::drop(Reason::NoSourceAddress);
        }
    }
    claim::make(draft, tables)
}

/// Looks for a flow that speaks for the packet, and removes both entries of one that no longer does.
/// None: go on and make a new one.
#[inline(always)]
fn settle<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Option<Admission> {
    let (original, gone) = {
        let flow = tables.flow(&draft.key)?;
        if !is_stale::<F, T>(&flow, draft.key.protocol, draft.tcp_flags, tables) {
            return Some(Admission::MADE);
        }
        draft.answer = flow.peer_key(draft.key.protocol);
        let gone = tables
            .backend(flow.backend)
            .is_none_or(|b| b.generation != flow.generation);
        (flow.state & flow_state::ORIGINAL != 0, gone)
    };
    tables.remove_flow(&draft.answer);
    tables.remove_flow(&draft.key);
    let opens = draft.key.protocol != protocol::TCP || draft.tcp_flags & tcp_flag::SYN != 0;
    (gone && !(original && opens)).then_some(Admission::refuse(Reason::BackendGone))
}

/// Finds the service that a packet is for; or what to do with a packet that is for none.
#[inline(always)]
fn find_service<F: Family, T: FamilyTables<F>>(
    draft: &mut Draft<F>,
    tables: &T,
) -> Option<Admission> {
    let key = ServiceKey {
        address: draft.key.destination,
        port: draft.key.destination_port,
        protocol: draft.key.protocol,
        pad: 0,
    };
    let outside = draft.opener == Client::Outside;
    let Some(service) = tables.service(&key) else {
        return Some(match tables.address(&draft.key.destination) {
            None => Admission::verdict(Verdict::PASS),
            Some(flags) if outside && flags.0 & address_flag::EXTERNAL == 0 => {
                Admission::drop(Reason::OutsideClusterAddress)
            }
            Some(_) => Admission::refuse(Reason::UnknownPort),
        });
    };
    draft.service = service;
    if outside && service.flags & service_flag::EXTERNAL == 0 {
        return Some(Admission::drop(Reason::OutsideClusterAddress));
    }
    if service.flags & service_flag::RESTRICTED != 0 && !client::is_admitted(draft, tables) {
        return Some(Admission::drop(Reason::SourceNotAllowed));
    }
    draft.local = selection::narrow(&mut draft.service, outside);
    if draft.service.slots != 0 {
        return None;
    }
    Some(
        if draft.local && service.flags & service_flag::ELSEWHERE != 0 {
            Admission::drop(Reason::NoLocalEndpoint)
        } else {
            Admission::refuse(Reason::NoEndpoint)
        },
    )
}

/// Chooses the backend.
#[inline(always)]
fn choose_backend<F: Family, T: FamilyTables<F>>(draft: &mut Draft<F>, tables: &T) -> Option<()> {
    let seed = if draft.service.flags & service_flag::MAGLEV != 0 {
        0
    } else {
        tables.settings()?.seed.wrapping_add(tables.tick())
    };
    let slot = choice::scale(choice::tuple_hash(&draft.key, seed), draft.service.slots);
    selection::take(
        &draft.service,
        slot,
        tables,
        &mut draft.index,
        &mut draft.backend,
    )
    .then_some(())
}

/// This node's address towards the device that a packet leaves by.
#[inline(always)]
fn egress_address<F: Family, T: FamilyTables<F>>(tables: &T, hop: &Hop, vlan: u32) -> F::Addr {
    let key = DeviceKey {
        ifindex: hop.ifindex,
        vlan,
    };
    let Some(device) = tables.device(&key) else {
        return F::Addr::default();
    };
    if F::IS_V6 {
        F::Addr::narrow(&device.source_v6.widen())
    } else {
        F::Addr::narrow(&device.source_v4.widen())
    }
}
