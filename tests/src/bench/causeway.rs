//! Causeway's programs and maps, filled for a benchmark without the daemon.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramFd, SchedClassifier, TcAttachType, Xdp, XdpMode},
};
use proxy_common::{
    abi::{
        Addr4, Addr6, Backend, Device, DeviceKey, DeviceRole, Family, FilterKind, Flow, FlowKey,
        MAPS, Service, ServiceKey, Settings, V4, V6, backend_flag, device_flag, filter_position,
        service_flag,
    },
    datapath::{Event, Reason},
    wire::{Be16, MacAddr, Plain},
};
use proxy_user::dataplane::{Features, MapSizes, Maps, PinFolder, table::Table};

use super::{frame::Protocol, namespace, programs::Hook};

/// First source port that translation may claim, and how many there are.
const PORTS: (u32, u32) = (30_000, 28_000);

/// The families, as far as their tables go.
pub trait Tabled: Family {
    /// The flow table.
    fn flows(maps: &Maps) -> &Table<FlowKey<Self>, Flow<Self>>;
}

impl Tabled for V4 {
    fn flows(maps: &Maps) -> &Table<FlowKey<Self>, Flow<Self>> {
        &maps.flows_v4
    }
}

impl Tabled for V6 {
    fn flows(maps: &Maps) -> &Table<FlowKey<Self>, Flow<Self>> {
        &maps.flows_v6
    }
}

/// A device of the node.
#[derive(Clone, Copy, Debug)]
pub struct Uplink {
    /// Its index.
    pub ifindex: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// This node's address on it.
    pub source_v4: Ipv4Addr,
    /// This node's address on it.
    pub source_v6: Ipv6Addr,
    /// Whether XDP may send to it.
    pub xdp: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
}

/// A loaded datapath. Programs stay attached for as long as this value lives.
#[derive(Debug)]
pub struct Datapath {
    object: Ebpf,
    maps: Maps,
    /// The next index of a backend and of a slot.
    backends: u32,
    /// The next id of a service.
    services: u32,
}

impl Datapath {
    /// Loads the programs of `object`, with flow tables of `flows` entries if not of the usual size.
    pub fn load(object: &[u8], flows: Option<u32>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = PinFolder::new(&namespace::name(&format!("maps{count}")));
        let loaded = Self::load_pinned(object, flows, &folder);
        // The programs hold the maps from here on.
        folder.remove().context("removing the maps' pins")?;
        loaded
    }

    fn load_pinned(object: &[u8], flows: Option<u32>, folder: &PinFolder) -> Result<Self> {
        let mut sizes = MapSizes::new();
        if let Some(entries) = flows {
            sizes.extend(["FLOWS_V4", "FLOWS_V6"].map(|name| (name.to_owned(), entries)));
        }
        let maps = Maps::open_or_create(folder, &sizes).context("making the maps")?;
        let features = Features::probe().context("asking the kernel for its features")?;
        let mut loader = EbpfLoader::new();
        for spec in MAPS {
            loader.map_pin_path(spec.name, folder.map(spec.name));
        }
        loader.override_global("L4_CSUM_IPV6", &features.l4_csum_ipv6, true);
        let mut object = loader.load(object).context("loading Causeway's object")?;
        for (name, program) in object.programs_mut() {
            let result = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => continue,
            };
            result.with_context(|| format!("loading program {name}"))?;
        }
        let (port_min, port_count) = PORTS;
        let settings = Settings {
            port_min,
            port_count,
            seed: 0x5bd1_e995,
            ..Settings::default()
        };
        maps.settings
            .put(&0, &settings)
            .context("writing SETTINGS")?;
        Ok(Self {
            object,
            maps,
            backends: 1,
            services: 1,
        })
    }

    /// The program of `hook`.
    pub fn program(&self, hook: Hook) -> Result<ProgramFd> {
        let name = match hook {
            Hook::Xdp => "xdp_uplink",
            Hook::Tc => "tc_ingress",
        };
        let program = self
            .object
            .program(name)
            .with_context(|| format!("no program {name}"))?;
        program
            .fd()
            .and_then(|fd| Ok(fd.try_clone()?))
            .context("duplicating a program's descriptor")
    }

    /// Makes a device known. To be called in the device's network namespace.
    pub fn add_uplink(&mut self, uplink: &Uplink) -> Result<()> {
        let key = DeviceKey {
            ifindex: uplink.ifindex,
            vlan: 0,
        };
        let device = Device {
            role: DeviceRole::Uplink as u32,
            ifindex: uplink.ifindex,
            source_v4: uplink.source_v4.into(),
            source_v6: uplink.source_v6.into(),
            mac: MacAddr::from_bytes(uplink.mac),
            flags: if uplink.xdp {
                device_flag::XDP_TARGET
            } else {
                0
            },
            mtu: uplink.mtu,
        };
        self.maps
            .devices
            .put(&key, &device)
            .context("writing DEVICES")?;
        self.admit(FilterKind::Destination, uplink.source_v4.into())?;
        self.admit(FilterKind::Destination, uplink.source_v6.into())?;
        if uplink.xdp {
            self.maps
                .tx_ports
                .put(&uplink.ifindex, &[uplink.ifindex, 0])
                .context("writing TX_PORTS")?;
        }
        Ok(())
    }

    /// Makes a service known: reached at `address`, one port and protocol, by these endpoints.
    pub fn add_service(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        endpoints: &[(IpAddr, u16)],
    ) -> Result<()> {
        let protocol = protocol.number();
        let id = self.services;
        self.services += 1;
        let first_slot = self.backends;
        for (ip, port) in endpoints {
            let backend = Backend {
                generation: 1,
                service: id,
                address: wide(*ip),
                port: Be16::new(*port),
                flags: backend_flag::SERVING,
                protocol,
                family: if ip.is_ipv4() { 4 } else { 6 },
                pad: [0; 3],
            };
            let index = self.backends;
            self.backends += 1;
            self.maps
                .backends
                .put(&index, &backend)
                .context("writing BACKENDS")?;
            self.maps
                .slots
                .put(&index, &index)
                .context("writing SLOTS")?;
            self.admit(FilterKind::Source, *ip)?;
        }
        let slots = u32::try_from(endpoints.len()).context("too many endpoints")?;
        let service = Service {
            id,
            first_slot,
            slots,
            flags: service_flag::EXTERNAL,
            ..Service::default()
        };
        self.admit(FilterKind::Destination, address)?;
        let port = Be16::new(port);
        match address {
            IpAddr::V4(address) => {
                let key = ServiceKey {
                    address: address.into(),
                    port,
                    protocol,
                    pad: 0,
                };
                self.maps.services_v4.put(&key, &service)
            }
            IpAddr::V6(address) => {
                let key = ServiceKey {
                    address: address.into(),
                    port,
                    protocol,
                    pad: 0,
                };
                self.maps.services_v6.put(&key, &service)
            }
        }
        .context("writing a service")
    }

    /// Sets an address's bit in the filter.
    fn admit(&self, kind: FilterKind, address: IpAddr) -> Result<()> {
        let (index, bit) = match address {
            IpAddr::V4(address) => filter_position(kind, &Addr4::from(address)),
            IpAddr::V6(address) => filter_position(kind, &Addr6::from(address)),
        };
        let word = self
            .maps
            .filter
            .get(&index)
            .context("reading FILTER")?
            .unwrap_or(0);
        self.maps
            .filter
            .put(&index, &(word | bit))
            .context("writing FILTER")
    }

    /// Connections made so far.
    pub fn flows_made(&self) -> Result<u64> {
        let counts = self
            .maps
            .counters
            .get(Event::FlowMade as u32)
            .context("reading COUNTERS")?;
        Ok(counts.iter().map(|counter| counter.packets).sum())
    }

    /// All that was counted, as text.
    pub fn counts(&self) -> Result<String> {
        let reasons = Reason::ALL
            .iter()
            .map(|reason| (*reason as u32, reason.word()));
        let events = Event::ALL.iter().map(|event| (*event as u32, event.word()));
        let mut text = String::new();
        for (index, word) in reasons.chain(events) {
            let counts = self.maps.counters.get(index).context("reading COUNTERS")?;
            let packets: u64 = counts.iter().map(|counter| counter.packets).sum();
            if packets > 0 {
                write!(text, "{word} {packets} ")?;
            }
        }
        Ok(text)
    }

    /// Takes connections out: the entries of `keys` and those of their answers.
    pub fn forget<F: Tabled>(&self, keys: &[FlowKey<F>]) -> Result<()>
    where
        FlowKey<F>: Plain,
        Flow<F>: Plain,
    {
        let flows = F::flows(&self.maps);
        let mut entries = Vec::with_capacity(keys.len() * 2);
        for key in keys {
            let flow = flows.get(key).context("reading a flow")?;
            let flow =
                flow.with_context(|| format!("a flow was made but is not there: {key:?}"))?;
            entries.extend([flow.peer_key(key.protocol), *key]);
        }
        let removed = flows.remove_all(&entries).context("removing flows")?;
        ensure!(
            removed == entries.len(),
            "{removed} of {} entries were there",
            entries.len()
        );
        Ok(())
    }

    /// Attaches the TC programs, and with `xdp` the XDP program, to devices of the calling thread's
    /// network namespace.
    pub fn attach(&mut self, devices: &[&str], xdp: bool) -> Result<()> {
        for device in devices {
            for (name, place) in [
                ("tc_ingress", TcAttachType::Ingress),
                ("tc_egress", TcAttachType::Egress),
            ] {
                let program = self.object.program_mut(name).context("no TC program")?;
                let program: &mut SchedClassifier = program.try_into()?;
                program
                    .attach(device, place)
                    .with_context(|| format!("{name} at {device}"))?;
            }
            if xdp {
                let program = self
                    .object
                    .program_mut("xdp_uplink")
                    .context("no XDP program")?;
                let program: &mut Xdp = program.try_into()?;
                program
                    .attach(device, XdpMode::Driver)
                    .with_context(|| format!("xdp_uplink at {device}"))?;
            }
        }
        Ok(())
    }
}

/// An address in the form of [`Backend::address`].
fn wide(address: IpAddr) -> [u16; 8] {
    match address {
        IpAddr::V4(address) => {
            let Addr4([a, b]) = address.into();
            [a, b, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => Addr6::from(address).0,
    }
}
