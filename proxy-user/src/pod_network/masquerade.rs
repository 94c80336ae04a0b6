//! Source translation of what this node's pods send out of the cluster: their addresses mean nothing
//! there. The kernel's own connection tracking does it, in tables of nftables that are ours
//! (docs/decisions/0008-masquerade.md says why not the datapath).

use std::io;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use nlink::netlink::nftables::{BaseChain, Chain, Family, NatHook, NatStatement, Priority, Rule};
use nlink::netlink::{Connection, Nftables};

use crate::config::Config;
use crate::model::State;
use crate::reconcile::Facts;

/// The chain in each table.
const CHAIN: &str = "postrouting";

/// IANA's numbers.
const WITH_PORTS: [u8; 2] = [6, 17];

/// One rule, in the order in which they are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// What goes there keeps its source.
    Keep(IpNet),
    /// What comes from there and leaves by this device gets the device's address.
    Translate(IpNet, String),
}

/// What both tables shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Masquerade {
    steps: Vec<Step>,
    /// Source ports that may be chosen.
    ports: Option<(u16, u16)>,
}

impl Masquerade {
    /// What is desired: nothing for a node without pod ranges.
    pub(super) fn desired(config: &Config, state: &State, facts: &Facts) -> Self {
        let own = state.nodes.get(&config.node).map(|node| &node.pod_ranges);
        let Some(own) = own.filter(|ranges| !ranges.is_empty()) else {
            return Self::default();
        };
        let nodes = state.nodes.values();
        let of_cluster = nodes.flat_map(|node| {
            let internal = node.addresses.iter().take(node.internal);
            let addresses = internal.copied().map(IpNet::from);
            node.pod_ranges.iter().copied().chain(addresses)
        });
        let mut kept: Vec<IpNet> = of_cluster
            .chain(config.pod_network.not_masqueraded.iter().copied())
            .map(|range| range.trunc())
            .collect();
        kept.sort_unstable();
        kept.dedup();
        let uplinks = facts
            .devices
            .values()
            .filter(|device| facts.is_uplink(device));
        let leaves = uplinks.flat_map(|device| {
            let from = move |range: &IpNet| Step::Translate(range.trunc(), device.name.clone());
            own.iter().map(from)
        });
        Self {
            steps: kept.into_iter().map(Step::Keep).chain(leaves).collect(),
            ports: Some(ports(&config.nat_ports)),
        }
    }

    /// Makes both tables so, in one step; does nothing if they were made so and are still there.
    pub(super) fn write(&self, instance: &str, written: Option<&Self>) -> io::Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime
            .block_on(self.commit(&table(instance), written == Some(self)))
            .map_err(io::Error::other)
    }

    async fn commit(&self, table: &str, same: bool) -> nlink::Result<bool> {
        let connection = Connection::<Nftables>::new()?;
        let mut there = Vec::new();
        for family in [Family::Ip, Family::Ip6] {
            let tables = connection.list_tables_in(family).await?;
            if tables.iter().any(|one| one.name == table) {
                there.push(family);
            }
        }
        let wanted = if self.steps.is_empty() { 0 } else { 2 };
        if same && there.len() == wanted {
            return Ok(false);
        }
        let mut batch = connection.transaction();
        for family in there {
            batch = batch.del_table(table, family);
        }
        if wanted > 0 {
            for family in [Family::Ip, Family::Ip6] {
                let base = BaseChain::nat(NatHook::Postrouting, Priority::SrcNat);
                let chain = Chain::new(table, CHAIN)?.family(family).base(base);
                batch = batch.add_table(table, family).add_chain(chain);
                for rule in self.rules(table, family) {
                    batch = batch.add_rule(rule);
                }
            }
        }
        batch.commit(&connection).await?;
        Ok(true)
    }

    fn rules(&self, table: &str, family: Family) -> Vec<Rule> {
        let new = || Rule::new(table, CHAIN).family(family);
        let of_family = |range: &IpNet| range.addr().is_ipv4() == (family == Family::Ip);
        let mut rules = Vec::new();
        for step in &self.steps {
            match step {
                Step::Keep(to) if of_family(to) => {
                    rules.push(new().match_daddr(to.addr(), to.prefix_len()).accept());
                }
                Step::Translate(from, device) if of_family(from) => {
                    let matching = || {
                        let rule = new().match_saddr(from.addr(), from.prefix_len());
                        rule.match_oif(device)
                    };
                    if let Some((first, last)) = self.ports {
                        let nat = || NatStatement::masquerade().ports(first, last);
                        let limited = |protocol| matching().match_l4proto(protocol).nat(nat());
                        rules.extend(WITH_PORTS.map(limited));
                    }
                    rules.push(matching().masquerade());
                }
                Step::Keep(_) | Step::Translate(..) => {}
            }
        }
        rules
    }
}

/// Removes both tables of an instance, if they are there.
pub fn remove(instance: &str) -> io::Result<()> {
    Masquerade::default().write(instance, None).map(drop)
}

fn table(instance: &str) -> String {
    format!("causeway-{instance}")
}

/// Neither node ports (an answer to one would be taken for a client of a service) nor those that the
/// datapath claims.
fn ports(nat: &RangeInclusive<u16>) -> (u16, u16) {
    /// After the node ports.
    const FIRST: u16 = 32_768;
    if *nat.start() > 40_000 {
        (FIRST, nat.start() - 1)
    } else {
        (FIRST.max(nat.end().saturating_add(1)), u16::MAX)
    }
}
