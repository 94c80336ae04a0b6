//! Plays cases in the kernel, by `BPF_PROG_TEST_RUN` of the embedded object's programs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process;

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::abi::{
    Address, AddressFlags, Affinity, AffinityKey, Counter, Device, DeviceKey, Family, Flow,
    FlowKey, LOOPBACK, Service, ServiceKey, SourceKey, V4, V6,
};
use proxy_common::wire::{Be16, Plain};
use proxy_user::dataplane::load::embedded_object;
use proxy_user::dataplane::maps::MapSizes;
use proxy_user::dataplane::table::Table;
use proxy_user::dataplane::{Globals, Maps, PinFolder, Programs};
use proxy_user::simulation::{FlowRecord, Tuple, narrow};

use super::arrival::{Arrivals, is_tagged};
use super::host::{affinity, kept};
use super::namespace::Namespace;
use super::requests::PEER;
use super::{Executor, Outcome, Seen, XDP_REDIRECT, XDP_TX, compare_maps};
use crate::case::place::{MTU, device};
use crate::case::world::{Kept, TICK, size};
use crate::case::{Hook, World};

/// Counters of `COUNTERS` that have a meaning: `Reason` from 0, `Event` from 32.
const COUNTERS: u32 = 64;

/// Most bytes of a frame after a run.
const ROOM: usize = 4_096;

/// The kernel executor: one per thread, which it moves into a namespace of its own.
pub struct Kernel {
    namespace: Namespace,
    folder: PinFolder,
    maps: Maps,
    /// Loaded for one time each: the clock of programs cannot be changed once they are loaded.
    programs: BTreeMap<u32, Programs>,
    /// What the maps hold, as far as this executor and the programs' visible results say.
    world: World,
    counters: BTreeMap<u32, Counter>,
    /// By device, the program there: the time that it was loaded for, and what keeps it there.
    held: BTreeMap<u32, (u32, OwnedFd)>,
    /// Before Linux 5.14 a test run cannot be given the device that an XDP frame comes in by, and
    /// takes the loopback device. This is for frames that need another.
    arrivals: Option<Arrivals>,
}

/// Longest frame that a device takes in: its MTU, Ethernet and one tag (`is_skb_forwardable`).
const ARRIVES: usize = MTU as usize + 18;

/// Devices that XDP programs are attached to.
const XDP_DEVICES: [u32; 2] = [device::UP0, device::UP1];

impl Kernel {
    /// Moves the calling thread into a new namespace, loads programs and makes empty maps.
    pub fn start() -> Result<Self> {
        Self::start_as(&format!("cases-{}", process::id()), size::FLOWS)
    }

    /// The same, with the maps pinned as those of an instance of this name, and with room for so many
    /// flow entries of each family.
    pub(crate) fn start_as(instance: &str, flows: u32) -> Result<Self> {
        let folder = PinFolder::new(instance);
        let namespace = Namespace::enter()?;
        let sizes: MapSizes = [
            ("BACKENDS", size::BACKENDS),
            ("SLOTS", size::SLOTS),
            ("FLOWS_V4", flows),
            ("FLOWS_V6", flows),
        ]
        .into_iter()
        .map(|(name, entries)| (name.to_owned(), entries))
        .collect();
        let maps = Maps::open_or_create(&folder, &sizes)?;
        let mut kernel = Self {
            namespace,
            folder,
            maps,
            programs: BTreeMap::new(),
            world: World {
                services: BTreeMap::new(),
                addresses: BTreeMap::new(),
                backends: BTreeMap::new(),
                slots: BTreeMap::new(),
                filter: BTreeMap::new(),
                devices: BTreeMap::new(),
                flows: BTreeMap::new(),
                settings: proxy_common::abi::Settings::default(),
                ..World::default()
            },
            counters: BTreeMap::new(),
            held: BTreeMap::new(),
            arrivals: None,
        };
        kernel.hold_devices()?;
        Ok(kernel)
    }

    /// Attaches XDP programs, and finds out whether test runs can be told a device.
    fn hold_devices(&mut self) -> Result<()> {
        for ifindex in XDP_DEVICES {
            self.hold(ifindex, TICK)?;
        }
        let probe = [0; 64];
        let context = xdp_context(device::UP0, probe.len())?;
        let told = self
            .programs(TICK)?
            .xdp_uplink
            .test_run(&probe, &context, &mut []);
        if matches!(&told, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            for ifindex in XDP_DEVICES {
                self.hold(ifindex + PEER, TICK)?;
            }
            self.arrivals = Some(Arrivals::open(&XDP_DEVICES)?);
        }
        Ok(())
    }

    /// Sees that the XDP program for a time is attached to a device.
    fn hold(&mut self, ifindex: u32, tick: u32) -> Result<()> {
        if self.held.get(&ifindex).is_none_or(|(now, _)| *now != tick) {
            // A device takes one program.
            drop(self.held.remove(&ifindex));
            let held = self.programs(tick)?.xdp_uplink.hold_native(ifindex);
            let held = held.with_context(|| format!("attaching xdp_uplink to device {ifindex}"))?;
            self.held.insert(ifindex, (tick, held));
        }
        Ok(())
    }

    /// The programs that believe in this time.
    pub(crate) fn programs(&mut self, tick: u32) -> Result<&Programs> {
        if !self.programs.contains_key(&tick) {
            let object = embedded_object().context(
                "this build has no kernel object: `cargo xtask setup` installs what it needs",
            )?;
            let globals = Globals {
                fixed_tick: tick,
                ..Globals::default()
            };
            let programs = Programs::load(object, &self.folder, globals)?;
            self.programs.insert(tick, programs);
        }
        self.programs.get(&tick).context("just loaded")
    }

    fn flows(&self) -> Result<BTreeMap<Tuple, FlowRecord>> {
        let mut flows = BTreeMap::new();
        read_flows(&self.maps.flows_v4, &mut flows)?;
        read_flows(&self.maps.flows_v6, &mut flows)?;
        Ok(flows)
    }

    /// Whom clients are kept with now.
    pub fn affinities(&mut self) -> Result<BTreeMap<(IpAddr, u32), Kept>> {
        let mut affinities = BTreeMap::new();
        for (key, affinity) in self.maps.affinity_v4.entries()? {
            affinities.insert((key.client.to_ip(), key.service), kept(&affinity));
        }
        for (key, affinity) in self.maps.affinity_v6.entries()? {
            affinities.insert((key.client.to_ip(), key.service), kept(&affinity));
        }
        self.world.affinities.clone_from(&affinities);
        Ok(affinities)
    }

    /// By how much counters were raised since the last call.
    fn counted(&mut self) -> Result<BTreeMap<u32, Counter>> {
        let mut raised = BTreeMap::new();
        for index in 0..COUNTERS {
            let mut now = Counter::default();
            for cpu in self.maps.counters.get(index)? {
                now.packets += cpu.packets;
                now.bytes += cpu.bytes;
            }
            let before = self.counters.insert(index, now).unwrap_or_default();
            if now != before {
                let counter = Counter {
                    packets: now.packets - before.packets,
                    bytes: now.bytes - before.bytes,
                };
                raised.insert(index, counter);
            }
        }
        Ok(raised)
    }

    /// Where the maps are pinned.
    pub(super) const fn folder(&self) -> &PinFolder {
        &self.folder
    }

    /// Makes the devices of the calling thread's namespace those that XDP sends to.
    pub(super) fn write_transmit_ports(&self, world: &World) -> Result<()> {
        let mut ports = world.transmit_ports().into_iter();
        Ok(ports.try_for_each(|ifindex| self.maps.tx_ports.put(&ifindex, &[ifindex, 0]))?)
    }

    /// Runs one frame and says the return code and the frame, without looking at the maps.
    pub fn run_only(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let tick = self.world.tick;
        let mut out = vec![0; ROOM];
        // struct __sk_buff up to ifindex. ingress_ifindex is 0: made on this node.
        let mut skb = [0; 11];
        skb[10] = ifindex;
        let run = match hook {
            Hook::Xdp if self.arrivals.is_some() => return self.run_xdp(ifindex, frame),
            Hook::Xdp => {
                let context = xdp_context(ifindex, frame.len())?;
                let programs = self.programs(tick)?;
                programs.xdp_uplink.test_run(frame, &context, &mut out)
            }
            Hook::Ingress => self
                .programs(tick)?
                .tc_ingress
                .test_run(frame, &skb, &mut out),
            Hook::Egress => self
                .programs(tick)?
                .tc_egress
                .test_run(frame, &skb, &mut out),
        }
        .with_context(|| format!("a test run of {} bytes at {hook:?}", frame.len()))?;
        out.truncate(run.length);
        Ok((run.returned, out))
    }

    /// Runs one frame at XDP where test runs know no device but the loopback device.
    fn run_xdp(&mut self, ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let tick = self.world.tick;
        if (ifindex != device::UP0 || is_tagged(frame)) && frame.len() <= ARRIVES {
            self.hold(ifindex, tick)?;
            let arrivals = self.arrivals.as_ref().context("frames cannot arrive")?;
            return arrivals.arrive(ifindex, frame);
        }
        let mut out = vec![0; ROOM];
        let stands_in = self.with_loopback_as(ifindex);
        for (key, device) in &stands_in {
            self.maps.devices.put(key, device)?;
        }
        let run = self
            .programs(tick)?
            .xdp_uplink
            .test_run(frame, &[], &mut out);
        for key in stands_in.keys() {
            match self.world.devices.get(key) {
                Some(device) => self.maps.devices.put(key, device)?,
                None => drop(self.maps.devices.remove(key)?),
            }
        }
        let run = run.with_context(|| format!("a test run of {} bytes at XDP", frame.len()))?;
        out.truncate(run.length);
        // Back out of the device that the loopback device stands for is a redirect.
        let returned = match run.returned {
            XDP_REDIRECT => XDP_TX,
            returned => returned,
        };
        Ok((returned, out))
    }

    /// Records that make the loopback device what another one is.
    fn with_loopback_as(&self, ifindex: u32) -> BTreeMap<DeviceKey, Device> {
        let devices = self.world.devices.iter();
        devices
            .filter(|(key, _)| key.ifindex == ifindex)
            .map(|(key, device)| {
                let ifindex = LOOPBACK;
                (DeviceKey { ifindex, ..*key }, *device)
            })
            .collect()
    }

    /// The flow tables and what was counted since this was last asked.
    pub fn results(&mut self) -> Result<(BTreeMap<Tuple, FlowRecord>, BTreeMap<u32, Counter>)> {
        let flows = self.flows()?;
        self.world.flows.clone_from(&flows);
        Ok((flows, self.counted()?))
    }
}

/// `struct xdp_md` up to `rx_queue_index`: data, `data_end`, `data_meta`, ingress device, queue.
fn xdp_context(ifindex: u32, length: usize) -> Result<[u32; 5]> {
    Ok([0, u32::try_from(length)?, 0, ifindex, 0])
}

fn read_flows<F: Family>(
    table: &Table<FlowKey<F>, Flow<F>>,
    flows: &mut BTreeMap<Tuple, FlowRecord>,
) -> Result<()>
where
    FlowKey<F>: Plain,
    Flow<F>: Plain,
{
    for (key, flow) in table.entries()? {
        ensure!(key.pad == [0; 3], "padding of {key:?} is not zero");
        flows.insert(Tuple::from(&key), FlowRecord::from(&flow));
    }
    Ok(())
}

/// Writes what differs between two states of a map. `zero`: what stands for "not there" in an array.
fn sync<K: Plain, V: Plain, A: Ord, B: PartialEq>(
    table: &Table<K, V>,
    old: &BTreeMap<A, B>,
    new: &BTreeMap<A, B>,
    record: impl Fn(&A, &B) -> (K, V),
    zero: Option<V>,
) -> Result<()> {
    for (key, value) in old.iter().filter(|(key, _)| !new.contains_key(key)) {
        let (key, _) = record(key, value);
        match &zero {
            Some(zero) => table.put(&key, zero)?,
            None => {
                table.remove(&key)?;
            }
        }
    }
    for (key, value) in new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(value))
    {
        let (key, value) = record(key, value);
        table.put(&key, &value)?;
    }
    Ok(())
}

/// The entries of one family.
fn of<F: Family, K: Ord + Clone, V: Clone>(
    map: &BTreeMap<K, V>,
    v6: impl Fn(&K) -> bool,
) -> BTreeMap<K, V> {
    map.iter()
        .filter(|(key, _)| v6(key) == F::IS_V6)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// The records of `SOURCES_*` of one family.
fn ranges<F: Family>(world: &World) -> BTreeMap<SourceKey<F>, u32> {
    let ranges = world.sources.iter();
    ranges
        .filter(|(_, range)| range.addr().is_ipv6() == F::IS_V6)
        .map(|(service, range)| {
            let key = SourceKey {
                prefix: SourceKey::<F>::bits(range.prefix_len().into()),
                service: *service,
                address: narrow(range.network()),
            };
            (key, 1)
        })
        .collect()
}

/// The tables of one family.
struct FamilyMaps<'m, F: Family> {
    services: &'m Table<ServiceKey<F>, Service>,
    addresses: &'m Table<F::Addr, AddressFlags>,
    flows: &'m Table<FlowKey<F>, Flow<F>>,
    sources: &'m Table<SourceKey<F>, u32>,
    affinities: &'m Table<AffinityKey<F>, Affinity>,
}

impl<F: Family> FamilyMaps<'_, F>
where
    ServiceKey<F>: Plain,
    FlowKey<F>: Plain,
    Flow<F>: Plain,
    SourceKey<F>: Plain,
    AffinityKey<F>: Plain,
{
    fn load(&self, old: &World, new: &World) -> Result<()> {
        let flow = |key: &Tuple, flow: &FlowRecord| (key.key(), flow.flow());
        let v6 = |key: &Tuple| key.source.is_ipv6();
        let (was, is) = (of::<F, _, _>(&old.flows, v6), of::<F, _, _>(&new.flows, v6));
        sync(self.flows, &was, &is, flow, None)?;

        let client = |(client, service): &(IpAddr, u32), with: &Kept| {
            let key = AffinityKey {
                service: *service,
                client: narrow(*client),
            };
            (key, affinity(with))
        };
        let v6 = |(client, _): &(IpAddr, u32)| client.is_ipv6();
        let was = of::<F, _, _>(&old.affinities, v6);
        let is = of::<F, _, _>(&new.affinities, v6);
        sync(self.affinities, &was, &is, client, None)?;
        let (was, is) = (ranges::<F>(old), ranges::<F>(new));
        sync(self.sources, &was, &is, |key, value| (*key, *value), None)?;

        let service = |(at, protocol): &(SocketAddr, u8), service: &Service| {
            let key = ServiceKey {
                address: narrow(at.ip()),
                port: Be16::new(at.port()),
                protocol: *protocol,
                pad: 0,
            };
            (key, *service)
        };
        let v6 = |(at, _): &(SocketAddr, u8)| at.is_ipv6();
        let was = of::<F, _, _>(&old.services, v6);
        let is = of::<F, _, _>(&new.services, v6);
        sync(self.services, &was, &is, service, None)?;

        let v6 = IpAddr::is_ipv6;
        let was = of::<F, _, _>(&old.addresses, v6);
        let is = of::<F, _, _>(&new.addresses, v6);
        let address = |ip: &_, flags: &u32| (narrow(*ip), AddressFlags(*flags));
        sync(self.addresses, &was, &is, address, None)
    }

    /// What the maps hold beside flows.
    fn services(&self) -> Result<BTreeMap<(SocketAddr, u8), Service>> {
        let entries = self.services.entries()?.into_iter();
        Ok(entries
            .map(|(key, service)| {
                let at = SocketAddr::new(key.address.to_ip(), key.port.get());
                ((at, key.protocol), service)
            })
            .collect())
    }

    fn addresses(&self) -> Result<BTreeMap<IpAddr, u32>> {
        let entries = self.addresses.entries()?.into_iter();
        Ok(entries.map(|(ip, flags)| (ip.to_ip(), flags.0)).collect())
    }
}

impl Kernel {
    fn v4(&self) -> FamilyMaps<'_, V4> {
        FamilyMaps {
            services: &self.maps.services_v4,
            addresses: &self.maps.addresses_v4,
            flows: &self.maps.flows_v4,
            sources: &self.maps.sources_v4,
            affinities: &self.maps.affinity_v4,
        }
    }

    fn v6(&self) -> FamilyMaps<'_, V6> {
        FamilyMaps {
            services: &self.maps.services_v6,
            addresses: &self.maps.addresses_v6,
            flows: &self.maps.flows_v6,
            sources: &self.maps.sources_v6,
            affinities: &self.maps.affinity_v6,
        }
    }
}

impl Executor for Kernel {
    fn load(&mut self, world: &World) -> Result<()> {
        self.namespace.load(world)?;
        let new = world.clone();
        let old = &self.world;
        self.v4().load(old, &new)?;
        self.v6().load(old, &new)?;
        let maps = &self.maps;
        sync(
            &maps.devices,
            &old.devices,
            &new.devices,
            |k, v| (*k, *v),
            None,
        )?;
        let zero = Some(proxy_common::abi::Backend::default());
        sync(
            &maps.backends,
            &old.backends,
            &new.backends,
            |k, v| (*k, *v),
            zero,
        )?;
        sync(
            &maps.slots,
            &old.slots,
            &new.slots,
            |k, v| (*k, *v),
            Some(0),
        )?;
        sync(
            &maps.filter,
            &old.filter,
            &new.filter,
            |k, v| (*k, *v),
            Some(0),
        )?;
        let ports = |world: &World| -> BTreeMap<u32, ()> {
            world
                .transmit_ports()
                .into_iter()
                .map(|p| (p, ()))
                .collect()
        };
        let port = |ifindex: &u32, (): &()| (*ifindex, [*ifindex, 0]);
        sync(&maps.tx_ports, &ports(old), &ports(&new), port, None)?;
        if old.settings != new.settings {
            maps.settings.put(&0, &new.settings)?;
        }
        self.world = new;
        Ok(())
    }

    fn run(&mut self, hook: Hook, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        self.counted()?;
        let (code, frame) = self.run_only(hook, ifindex, frame)?;
        let (flows, counters) = self.results()?;
        Ok(Outcome {
            verdict: Seen::Code(code),
            frame,
            flows,
            affinities: self.affinities()?,
            counters,
        })
    }

    fn verify(&mut self) -> Result<()> {
        let (world, maps) = (&self.world, &self.maps);
        let array = |entries: Vec<(u32, u64)>| -> BTreeMap<u32, u64> {
            entries.into_iter().filter(|(_, word)| *word != 0).collect()
        };
        let mut text = compare_maps("FILTER", &world.filter, &array(maps.filter.entries()?));
        let slots = maps
            .slots
            .entries()?
            .into_iter()
            .filter(|(_, slot)| *slot != 0);
        text += &compare_maps("SLOTS", &world.slots, &slots.collect());
        let unused = proxy_common::abi::Backend::default();
        let backends = maps.backends.entries()?.into_iter();
        let backends = backends.filter(|(_, backend)| *backend != unused);
        text += &compare_maps("BACKENDS", &world.backends, &backends.collect());
        let devices = maps.devices.entries()?.into_iter().collect();
        text += &compare_maps("DEVICES", &world.devices, &devices);
        let settings = maps.settings.entries()?.into_iter().collect();
        text += &compare_maps("SETTINGS", &[(0, world.settings)].into(), &settings);
        let mut services = self.v4().services()?;
        services.extend(self.v6().services()?);
        text += &compare_maps("SERVICES", &world.services, &services);
        let sources = maps.sources_v4.entries()?.into_iter().collect();
        text += &compare_maps("SOURCES_V4", &ranges::<V4>(world), &sources);
        let sources = maps.sources_v6.entries()?.into_iter().collect();
        text += &compare_maps("SOURCES_V6", &ranges::<V6>(world), &sources);
        let mut addresses = self.v4().addresses()?;
        addresses.extend(self.v6().addresses()?);
        text += &compare_maps("ADDRESSES", &world.addresses, &addresses);
        if !text.is_empty() {
            bail!("maps that nothing was to write to:\n{text}");
        }
        Ok(())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // That pins stay behind is no reason to fail a test.
        if let Some(instance) = self.folder.path().parent() {
            let _ = std::fs::remove_dir_all(instance);
        }
    }
}
