//! Settings under /proc/sys/net that services depend on.
//!
//! Three are set, because nothing works without them and nobody else is touched: the reverse path
//! filter of the devices that are ours, that the loopback device takes packets from own and loopback
//! addresses, and the reservation of the ports that translation claims.
//! Others are the node's policy: they are looked at, and said with the command that changes them.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct SysctlError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A setting that keeps services from working.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, and what it does.
    pub problem: String,
    /// A command that sets it right.
    pub remedy: String,
}

/// The settings of a network namespace.
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self::at(Path::new("/proc/sys/net"))
    }
}

impl Sysctl {
    /// The settings in this folder.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn read(&self, name: &str) -> Result<String, SysctlError> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(SysctlError {
                action: "read",
                path,
                source,
            }),
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SysctlError> {
        let path = self.root.join(name);
        fs::write(&path, value).map_err(|source| SysctlError {
            action: "write",
            path,
            source,
        })
    }

    /// Lets a device take packets whose answers would leave by another device (RFC 3704 section
    /// 2.4, "loose"): answers of pods come in with addresses that the routing table does not expect
    /// there. Says whether it had to be changed.
    ///
    /// The kernel uses the larger of the device's value and that of `all`, and 1 is strict.
    pub fn loosen_reverse_path(&self, device: &str) -> Result<bool, SysctlError> {
        let own = format!("ipv4/conf/{device}/rp_filter");
        let all = self.read("ipv4/conf/all/rp_filter")?;
        let strict = self.read(&own)?.max(all) == "1";
        if strict {
            self.write(&own, "2")?;
        }
        Ok(strict)
    }

    /// Lets a device take packets from addresses of this node, and from and to 127.0.0.0/8. For the
    /// loopback device, where answers to this node's own processes come in; nothing else arrives there
    /// without a route. Says whether it had to be changed.
    ///
    /// What the stack itself sends over that device brings its route along and is not asked
    /// (`ip_route_input_slow`); what is redirected there is.
    pub fn accept_local(&self, device: &str) -> Result<bool, SysctlError> {
        let mut changed = false;
        for name in ["accept_local", "route_localnet"] {
            changed |= self.switch_on(&format!("ipv4/conf/{device}/{name}"))?;
        }
        Ok(changed)
    }

    /// Keeps the kernel from giving `ports` to sockets that ask for any port. What others have
    /// reserved stays. Says whether it had to be changed.
    pub fn reserve_ports(&self, ports: &RangeInclusive<u16>) -> Result<bool, SysctlError> {
        let held = self.read(RESERVED)?;
        let mut wanted = Ranges::parse(&held);
        let before = wanted.clone();
        wanted.add(ports);
        if wanted == before {
            return Ok(false);
        }
        self.write(RESERVED, &wanted.to_string())?;
        Ok(true)
    }

    /// Takes back a reservation. What others have reserved stays, unless it was the same ports.
    pub fn free_ports(&self, ports: &RangeInclusive<u16>) -> Result<(), SysctlError> {
        let mut wanted = Ranges::parse(&self.read(RESERVED)?);
        wanted.remove(ports);
        // An empty line clears the list.
        self.write(RESERVED, &format!("{wanted}\n"))
    }

    /// Lets this node forward IPv4. Says whether it had to be changed.
    pub fn forward_v4(&self) -> Result<bool, SysctlError> {
        self.switch_on("ipv4/ip_forward")
    }

    /// Lets this node forward IPv6. A device that learns its addresses and routes from routers
    /// (`accept_ra` is 1) would stop doing so then; `uplinks` go on (2). Says whether it had to be
    /// changed.
    pub fn forward_v6(&self, uplinks: &[&str]) -> Result<bool, SysctlError> {
        for device in uplinks {
            let name = format!("ipv6/conf/{device}/accept_ra");
            if self.read(&name)? == "1" {
                self.write(&name, "2")?;
            }
        }
        self.switch_on("ipv6/conf/all/forwarding")
    }

    fn switch_on(&self, name: &str) -> Result<bool, SysctlError> {
        let off = self.read(name)? == "0";
        if off {
            self.write(name, "1")?;
        }
        Ok(off)
    }

    /// The ports that the kernel gives to sockets that ask for any port.
    #[must_use]
    pub fn local_ports(&self) -> Option<RangeInclusive<u16>> {
        let text = self.read("ipv4/ip_local_port_range").ok()?;
        let (first, last) = text.split_once(char::is_whitespace)?;
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    }

    /// What keeps services from working in this namespace.
    #[must_use]
    pub fn findings(&self, v4: bool, v6: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        let families = [
            (v4, "ipv4/ip_forward", "net.ipv4.ip_forward", "IPv4"),
            (
                v6,
                "ipv6/conf/all/forwarding",
                "net.ipv6.conf.all.forwarding",
                "IPv6",
            ),
        ];
        for (used, name, key, family) in families {
            if used && self.read(name).is_ok_and(|value| value == "0") {
                findings.push(Finding {
                    problem: format!(
                        "{family} forwarding is off: the routing table refuses to forward, so \
                         services reach no pod"
                    ),
                    remedy: format!("sysctl -w {key}=1"),
                });
            }
        }
        findings
    }
}

const RESERVED: &str = "ipv4/ip_local_reserved_ports";

/// Port ranges in the kernel's notation: `8080,9000-9100`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<(u16, u16)>);

impl Ranges {
    fn parse(text: &str) -> Self {
        let range = |item: &str| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        };
        let mut ranges = Self(text.split(',').filter_map(range).collect());
        ranges.join();
        ranges
    }

    fn add(&mut self, ports: &RangeInclusive<u16>) {
        self.0.push((*ports.start(), *ports.end()));
        self.join();
    }

    fn remove(&mut self, ports: &RangeInclusive<u16>) {
        let (first, last) = (*ports.start(), *ports.end());
        let mut rest = Vec::new();
        for (from, to) in self.0.drain(..) {
            let below = first.checked_sub(1).map(|end| (from, to.min(end)));
            let above = last.checked_add(1).map(|start| (from.max(start), to));
            rest.extend(
                [below, above]
                    .into_iter()
                    .flatten()
                    .filter(|(from, to)| from <= to),
            );
        }
        self.0 = rest;
        self.join();
    }

    /// In order, and without overlaps and neighbours.
    fn join(&mut self) {
        self.0.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(self.0.len());
        for (from, to) in self.0.drain(..) {
            match joined.last_mut() {
                Some((_, end)) if u32::from(from) <= u32::from(*end) + 1 => *end = (*end).max(to),
                _ => joined.push((from, to)),
            }
        }
        self.0 = joined;
    }
}

impl std::fmt::Display for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (from, to)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if from == to {
                write!(f, "{comma}{from}")?;
            } else {
                write!(f, "{comma}{from}-{to}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(values: &[(&str, &str)]) -> (tempfile::TempDir, Sysctl) {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in values {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let sysctl = Sysctl::at(folder.path());
        (folder, sysctl)
    }

    #[test]
    fn a_strict_reverse_path_filter_is_loosened_and_others_are_left_alone() {
        for (all, own, changed, after) in [
            ("1", "0", true, "2"),
            ("0", "1", true, "2"),
            ("0", "0", false, "0"),
            ("1", "2", false, "2"),
        ] {
            let (_folder, sysctl) = tree(&[
                ("ipv4/conf/all/rp_filter", all),
                ("ipv4/conf/veth1/rp_filter", own),
            ]);
            assert_eq!(
                sysctl.loosen_reverse_path("veth1").unwrap(),
                changed,
                "{all} {own}"
            );
            assert_eq!(sysctl.read("ipv4/conf/veth1/rp_filter").unwrap(), after);
        }
    }

    #[test]
    fn the_loopback_device_takes_packets_from_own_addresses() {
        let (_folder, sysctl) = tree(&[
            ("ipv4/conf/lo/accept_local", "1"),
            ("ipv4/conf/lo/route_localnet", "0"),
        ]);
        assert!(sysctl.accept_local("lo").unwrap());
        for name in ["accept_local", "route_localnet"] {
            assert_eq!(sysctl.read(&format!("ipv4/conf/lo/{name}")).unwrap(), "1");
        }
        assert!(!sysctl.accept_local("lo").unwrap());
    }

    #[test]
    fn uplinks_that_listen_to_routers_go_on_when_the_node_forwards() {
        let (_folder, sysctl) = tree(&[
            ("ipv4/ip_forward", "0"),
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0/accept_ra", "1"),
            ("ipv6/conf/eth1/accept_ra", "0"),
        ]);
        assert!(sysctl.forward_v4().unwrap() && !sysctl.forward_v4().unwrap());
        assert!(sysctl.forward_v6(&["eth0", "eth1"]).unwrap());
        assert!(!sysctl.forward_v6(&["eth0", "eth1"]).unwrap());
        let after = |device| sysctl.read(&format!("ipv6/conf/{device}/accept_ra"));
        assert_eq!([after("eth0").unwrap(), after("eth1").unwrap()], ["2", "0"]);
        assert_eq!(sysctl.read("ipv6/conf/all/forwarding").unwrap(), "1");
    }

    #[test]
    fn a_reservation_keeps_those_of_others() {
        let (_folder, sysctl) = tree(&[(RESERVED, "8080,30000-32767,61001")]);
        assert!(sysctl.reserve_ports(&(61_000..=65_000)).unwrap());
        assert_eq!(
            sysctl.read(RESERVED).unwrap(),
            "8080,30000-32767,61000-65000"
        );
        assert!(!sysctl.reserve_ports(&(61_000..=65_000)).unwrap());
        sysctl.free_ports(&(61_000..=65_000)).unwrap();
        assert_eq!(sysctl.read(RESERVED).unwrap(), "8080,30000-32767");
    }

    #[test]
    fn the_ports_of_sockets_are_read() {
        let (_folder, sysctl) = tree(&[("ipv4/ip_local_port_range", "32768\t60999")]);
        assert_eq!(sysctl.local_ports(), Some(32_768..=60_999));
        let (_folder, sysctl) = tree(&[]);
        assert_eq!(sysctl.local_ports(), None);
    }

    #[test]
    fn forwarding_that_is_off_is_found_with_a_remedy() {
        let (_folder, sysctl) =
            tree(&[("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "1")]);
        let findings = sysctl.findings(true, true);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].remedy, "sysctl -w net.ipv4.ip_forward=1");
        assert!(sysctl.findings(false, true).is_empty());
    }

    proptest! {
        /// Against a set of ports.
        #[test]
        fn ranges_are_a_set(steps in prop::collection::vec((any::<u16>(), 0_u16..300, any::<bool>()), 0..20)) {
            let mut ranges = Ranges::default();
            let mut ports = std::collections::BTreeSet::new();
            for (first, length, add) in steps {
                let range = first..=first.saturating_add(length);
                if add {
                    ranges.add(&range);
                    ports.extend(range);
                } else {
                    ranges.remove(&range);
                    ports.retain(|port| !range.contains(port));
                }
                let text = ranges.to_string();
                prop_assert_eq!(&Ranges::parse(&text), &ranges);
                let held: Vec<u16> = ranges.0.iter().flat_map(|(from, to)| *from..=*to).collect();
                prop_assert_eq!(held, ports.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
