//! What the kernel says about a next hop, and what the datapath makes of it.

use proxy_common::abi::{Device, DeviceRole, FlowStep, device_flag};
use proxy_common::datapath::Hop;

/// The answer of the kernel's routing and neighbour tables, as `bpf_fib_lookup` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fib {
    /// An unreachable, prohibit or blackhole route.
    Refused,
    /// Not to be forwarded: this node's own address, or no route.
    Local,
    /// To be forwarded, but not by the datapath: a route that encapsulates.
    Stack {
        /// The device that the packet came in by.
        ifindex: u32,
    },
    /// The route is known, the neighbour's link-layer address is not.
    NoNeighbour {
        /// The device that the packet leaves by.
        ifindex: u32,
    },
    /// All is known.
    Forward {
        /// The device that the packet leaves by.
        ifindex: u32,
        /// Link-layer address of the next hop.
        destination: [u8; 6],
        /// Link-layer address of the device.
        source: [u8; 6],
    },
}

impl Fib {
    /// The device that the packet leaves by.
    #[must_use]
    pub const fn ifindex(&self) -> Option<u32> {
        match *self {
            Self::Refused | Self::Local | Self::Stack { .. } => None,
            Self::NoNeighbour { ifindex } | Self::Forward { ifindex, .. } => Some(ifindex),
        }
    }

    /// The next hop, where `device` is what `DEVICES` holds of [`Fib::ifindex`]: the same as the
    /// kernel programs make of it (`proxy-ebpf`, `tables`).
    #[must_use]
    pub fn hop(&self, device: Option<Device>) -> Hop {
        let device = device.unwrap_or_default();
        let role = DeviceRole::from_raw(device.role);
        match *self {
            Self::Refused => Hop::default(),
            Self::Local => Hop {
                step: FlowStep::Local,
                ..Hop::default()
            },
            Self::Stack { ifindex } => Hop {
                step: FlowStep::Stack,
                ifindex,
                ..Hop::default()
            },
            Self::NoNeighbour { ifindex } => Hop {
                step: FlowStep::Neighbour,
                ifindex,
                role,
                mtu: device.mtu,
                ..Hop::default()
            },
            Self::Forward {
                ifindex,
                destination,
                source,
            } => Hop {
                step: if role == DeviceRole::Pod {
                    FlowStep::Pod
                } else if device.flags & device_flag::XDP_TARGET != 0 {
                    FlowStep::Transmit
                } else {
                    FlowStep::Enqueue
                },
                ifindex,
                role,
                link_destination: proxy_common::wire::MacAddr::from_bytes(destination),
                link_source: proxy_common::wire::MacAddr::from_bytes(source),
                mtu: device.mtu,
            },
        }
    }
}
