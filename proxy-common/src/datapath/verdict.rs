//! What becomes of a packet, and why.

/// What becomes of a packet: an action and, for some, a device.
///
/// A number, since a function of a BPF program can return nothing larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict(u64);

/// The actions of a [`Verdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not ours, or left to another hook: goes on as it is.
    Pass,
    /// Goes no further; the reason is counted.
    Drop(Reason),
    /// Out of this device, with link-layer addresses already written.
    Transmit(u32),
    /// To the pod behind this device.
    Pod(u32),
    /// Out of this device; the kernel finds the link-layer address.
    Neighbour(u32),
    /// Rewritten, on to this node's own stack.
    Local,
    /// Rewritten, to this node's own stack as if the loopback device had received it.
    Loopback,
    /// Turned into an answer: back to where it came from.
    Reply,
}

impl Verdict {
    /// See [`Action::Pass`].
    pub const PASS: Self = Self(0);
    /// See [`Action::Local`].
    pub const LOCAL: Self = Self(5 << 32);
    /// See [`Action::Loopback`].
    pub const LOOPBACK: Self = Self(7 << 32);
    /// See [`Action::Reply`].
    pub const REPLY: Self = Self(6 << 32);

    /// See [`Action::Drop`].
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self(1 << 32 | reason as u64)
    }

    /// See [`Action::Transmit`].
    #[inline(always)]
    pub const fn transmit(ifindex: u32) -> Self {
        Self(2 << 32 | ifindex as u64)
    }

    /// See [`Action::Pod`].
    #[inline(always)]
    pub const fn pod(ifindex: u32) -> Self {
        Self(3 << 32 | ifindex as u64)
    }

    /// See [`Action::Neighbour`].
    #[inline(always)]
    pub const fn neighbour(ifindex: u32) -> Self {
        Self(4 << 32 | ifindex as u64)
    }

    #[inline(always)]
    pub(super) const fn raw(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(super) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The action.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> Action {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what is meant"
        )]
        let argument = self.0 as u32;
        match self.0 >> 32 {
            0 => Action::Pass,
            2 => Action::Transmit(argument),
            3 => Action::Pod(argument),
            4 => Action::Neighbour(argument),
            5 => Action::Local,
            6 => Action::Reply,
            7 => Action::Loopback,
            _ => Action::Drop(Reason::from_raw(argument)),
        }
    }
}

/// Counts the packet if it is dropped.
#[inline(always)]
pub(super) fn counted<T: super::Tables>(verdict: Verdict, tables: &T, length: u64) -> Verdict {
    if let Action::Drop(reason) = verdict.action() {
        tables.count(reason as u32, length);
    }
    verdict
}

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $number:literal, $word:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name {
            $($(#[doc = $doc])* $variant = $number,)*
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word that the command line and the metrics use.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// One line of explanation.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*),)* }
            }
        }
    };
}

numbered! {
    /// Why a packet went no further. Its number is its index in `COUNTERS`.
    Reason {
        /// The service has no endpoint; the client was refused.
        NoEndpoint = 0, "no-endpoint";
        /// The address belongs to services and none has this port; the client was refused.
        UnknownPort = 1, "unknown-port";
        /// The backend of an established flow is gone; TCP was reset.
        BackendGone = 2, "backend-gone";
        /// A cluster address, but the packet came from outside the cluster.
        OutsideClusterAddress = 3, "outside-cluster-address";
        /// A fragment to a service address: fragments are not translated.
        Fragment = 4, "fragment";
        /// A TCP reset that belongs to no known connection.
        OutOfState = 5, "out-of-state";
        /// No free source port towards this backend.
        PortsExhausted = 6, "ports-exhausted";
        /// The flow table is full.
        FlowTableFull = 7, "flow-table-full";
        /// There is no route to the backend or back to the client.
        NoRoute = 8, "no-route";
        /// The source must be translated, but the egress device has no address of this family.
        NoSourceAddress = 9, "no-source-address";
        /// The maps were being changed under this packet; a retransmission will do.
        Changing = 10, "changing";
        /// SCTP needs another source port, which cannot be given without a new CRC.
        SctpPort = 11, "sctp-port";
        /// Larger than the MTU towards where it goes; the sender was told by an ICMP error.
        TooLarge = 12, "too-large";
        /// XDP cannot send to the device that the packet was to leave by, or not any longer.
        DeviceGone = 13, "device-gone";
        /// The service keeps this traffic to endpoints on this node, and they are on others.
        NoLocalEndpoint = 14, "no-local-endpoint";
        /// The client is in none of the service's `loadBalancerSourceRanges`.
        SourceNotAllowed = 15, "source-not-allowed";
    }
}

numbered! {
    /// What else is counted. Its number is its index in `COUNTERS`.
    Event {
        /// A connection was made.
        FlowMade = 32, "flow-made";
        /// An echo request to a service address was answered.
        EchoAnswered = 33, "echo-answered";
        /// A client was sent a TCP reset or an ICMP error.
        Refused = 34, "refused";
        /// A source port was claimed other than the client's own.
        PortClaimed = 35, "port-claimed";
        /// A process connected to a service, and its socket to a backend.
        SocketConnected = 36, "socket-connected";
        /// A process sent a datagram to a service, and its socket to a backend.
        DatagramLed = 37, "datagram-led";
    }
}

impl Reason {
    #[inline(always)]
    const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::NoEndpoint,
            1 => Self::UnknownPort,
            2 => Self::BackendGone,
            3 => Self::OutsideClusterAddress,
            4 => Self::Fragment,
            5 => Self::OutOfState,
            6 => Self::PortsExhausted,
            7 => Self::FlowTableFull,
            9 => Self::NoSourceAddress,
            10 => Self::Changing,
            11 => Self::SctpPort,
            12 => Self::TooLarge,
            13 => Self::DeviceGone,
            14 => Self::NoLocalEndpoint,
            15 => Self::SourceNotAllowed,
            _ => Self::NoRoute,
        }
    }
}
