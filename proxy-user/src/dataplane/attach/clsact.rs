//! TC programs on kernels without TCX: filters of the `clsact` qdisc.
//!
//! Ours have a priority and a handle of their own, so that one request replaces one and no other
//! is touched.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};

use super::Hook;
use crate::dataplane::load::Program;
use crate::kernel::netlink::Netlink;

/// Our filters' priority: before those who leave room for others, behind those who take the first.
const PRIORITY: u16 = 40;

/// Our filters' handle.
const HANDLE: TcHandle = TcHandle {
    major: 0,
    minor: 0xca,
};

/// `ETH_P_ALL` in network order, as `tcm_info` wants it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

const KIND: &str = "bpf";

/// A filter of ours at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Its program's id.
    pub(super) program: u32,
}

const fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::Egress => TcHandle::MIN_EGRESS,
        _ => TcHandle::MIN_INGRESS,
    };
    TcHandle {
        major: u16::MAX,
        minor,
    }
}

fn message(ifindex: u32, parent: TcHandle, handle: TcHandle) -> io::Result<TcMessage> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut message = TcMessage::default();
    message.header = TcHeader {
        index,
        parent,
        handle,
        ..TcHeader::default()
    };
    Ok(message)
}

fn filter_message(ifindex: u32, hook: Hook) -> io::Result<TcMessage> {
    let mut message = message(ifindex, parent(hook), HANDLE)?;
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
    message.attributes.push(TcAttribute::Kind(KIND.to_owned()));
    Ok(message)
}

/// Attaches a program, or puts it in place of the one that our filter has.
pub(super) fn attach(
    netlink: &mut Netlink,
    ifindex: u32,
    hook: Hook,
    program: &Program,
) -> io::Result<()> {
    let mut qdisc = message(
        ifindex,
        TcHandle::CLSACT,
        TcHandle {
            major: u16::MAX,
            minor: 0,
        },
    )?;
    qdisc
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    match netlink.change(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        // There is one already, ours or another's: qdiscs can be shared.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        other => other?,
    }
    if filters(netlink, ifindex, hook)?
        .iter()
        .any(|held| in_our_place(held) && !is_ours(held))
    {
        return Err(io::Error::other(format!(
            "another program's filter has priority {PRIORITY} and handle {:#x}; remove it or give it other numbers",
            HANDLE.minor
        )));
    }
    let mut filter = filter_message(ifindex, hook)?;
    let descriptor = program.as_fd().as_raw_fd().cast_unsigned();
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(descriptor)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(program.name.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    netlink.change(
        RouteNetlinkMessage::NewTrafficFilter(filter),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Our filter at a hook; none if there is none.
pub(super) fn find(netlink: &mut Netlink, ifindex: u32, hook: Hook) -> io::Result<Option<Filter>> {
    Ok(filters(netlink, ifindex, hook)?
        .into_iter()
        .find_map(|filter| {
            let ours = is_ours(&filter);
            let program = options(&filter).find_map(|option| match option {
                TcFilterBpfOption::ProgId(id) => Some(*id),
                _ => None,
            });
            ours.then_some(Filter {
                program: program.unwrap_or_default(),
            })
        }))
}

/// Takes our filter away. The qdisc goes too if no filter of anybody is left in it.
pub(super) fn detach(netlink: &mut Netlink, ifindex: u32, hook: Hook) -> io::Result<()> {
    if find(netlink, ifindex, hook)?.is_some() {
        let filter = filter_message(ifindex, hook)?;
        netlink.change(RouteNetlinkMessage::DelTrafficFilter(filter), 0)?;
        let empty = filters(netlink, ifindex, Hook::Ingress)?.is_empty()
            && filters(netlink, ifindex, Hook::Egress)?.is_empty();
        if empty {
            let root = TcHandle {
                major: u16::MAX,
                minor: 0,
            };
            let mut qdisc = message(ifindex, TcHandle::CLSACT, root)?;
            qdisc
                .attributes
                .push(TcAttribute::Kind("clsact".to_owned()));
            netlink.change(RouteNetlinkMessage::DelQueueDiscipline(qdisc), 0)?;
        }
    }
    Ok(())
}

/// All filters at a hook; none if the device has no such qdisc.
fn filters(netlink: &mut Netlink, ifindex: u32, hook: Hook) -> io::Result<Vec<TcMessage>> {
    let request = message(ifindex, parent(hook), TcHandle::UNSPEC)?;
    match netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request)) {
        Ok(answers) => Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                // The kernel first shows each priority's head, which has no handle.
                RouteNetlinkMessage::NewTrafficFilter(filter)
                    if filter.header.handle != TcHandle::UNSPEC =>
                {
                    Some(filter)
                }
                _ => None,
            })
            .collect()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Whether a filter stands where ours belongs.
fn in_our_place(filter: &TcMessage) -> bool {
    filter.header.handle == HANDLE && filter.header.info >> 16 == u32::from(PRIORITY)
}

/// By place and kind, and by the program's name, which only we give.
fn is_ours(filter: &TcMessage) -> bool {
    let kind = filter
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == KIND));
    let name = options(filter).any(|option| {
        matches!(option, TcFilterBpfOption::ProgName(name) if Hook::of_program(name).is_some())
    });
    in_our_place(filter) && kind && name
}

fn options(filter: &TcMessage) -> impl Iterator<Item = &TcFilterBpfOption> {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().filter_map(|option| match option {
        TcOption::Bpf(option) => Some(option),
        _ => None,
    })
}
