//! The peers' rules: what kube-proxy 1.3x writes in its iptables and its nftables mode, for `n`
//! services of three endpoints and clients from outside of the cluster.
//!
//! Chains, their order and what each rule matches follow kube-proxy; the comments that it adds to
//! rules are left out.

use std::{
    fmt::{self, Write as _},
    net::Ipv4Addr,
};

use super::world::ENDPOINTS;
use crate::bench::frame::Protocol;

/// Port of every service.
pub const SERVICE_PORT: u16 = 80;
/// Port of every endpoint.
pub const ENDPOINT_PORT: u16 = 8080;

/// Addresses of the cluster's pods: clients elsewhere are masqueraded.
const PODS: &str = "10.0.0.0/8";

/// A service and its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its cluster address.
    pub address: Ipv4Addr,
    /// Its pods.
    pub endpoints: [Ipv4Addr; 3],
    /// Whether it has a UDP port beside the TCP one.
    pub udp: bool,
}

impl Service {
    /// The protocols of its ports.
    #[must_use]
    pub fn protocols(&self) -> &'static [Protocol] {
        if self.udp {
            &[Protocol::Tcp, Protocol::Udp]
        } else {
            &[Protocol::Tcp]
        }
    }
}

/// The address of service `index`.
fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 10).to_bits() + index)
}

/// The service that is measured when there are `n`: in the middle, where a list of rules shows its
/// average cost.
#[must_use]
pub fn measured(n: u32) -> Ipv4Addr {
    address(n / 2)
}

/// `n` services: the measured one, whose endpoints are there, and others, which nobody calls.
pub fn services(n: u32) -> impl Iterator<Item = Service> {
    (0..n).map(move |index| {
        if index == n / 2 {
            return Service {
                address: address(index),
                endpoints: ENDPOINTS,
                udp: true,
            };
        }
        let endpoint =
            |i| Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + 4 * index + i);
        Service {
            address: address(index),
            endpoints: [0, 1, 2].map(endpoint),
            udp: false,
        }
    })
}

/// kube-proxy's name of a chain: a prefix and 16 letters.
fn chain(prefix: &str, index: usize, protocol: &str, endpoint: usize) -> String {
    format!("{prefix}-{protocol:A<4}{index:0>10}{endpoint:0>2}").to_uppercase()
}

/// Input for `iptables-restore`.
pub fn iptables(n: u32) -> Result<String, fmt::Error> {
    let (mut chains, mut heads, mut bodies) = (String::new(), String::new(), String::new());
    for (index, service) in services(n).enumerate() {
        let to = service.address;
        for protocol in service.protocols().iter().map(|protocol| protocol.word()) {
            let name = chain("KUBE-SVC", index, protocol, 0);
            writeln!(chains, ":{name} - [0:0]")?;
            let matches = format!("-d {to}/32 -p {protocol} -m {protocol} --dport {SERVICE_PORT}");
            writeln!(heads, "-A KUBE-SERVICES {matches} -j {name}")?;
            writeln!(bodies, "-A {name} ! -s {PODS} {matches} -j KUBE-MARK-MASQ")?;
            for (place, endpoint) in service.endpoints.iter().enumerate() {
                let target = chain("KUBE-SEP", index, protocol, place);
                writeln!(chains, ":{target} - [0:0]")?;
                let chance = match place {
                    0 => "-m statistic --mode random --probability 0.33333333349 ",
                    1 => "-m statistic --mode random --probability 0.5 ",
                    _ => "",
                };
                writeln!(bodies, "-A {name} {chance}-j {target}")?;
                writeln!(bodies, "-A {target} -s {endpoint}/32 -j KUBE-MARK-MASQ")?;
                writeln!(
                    bodies,
                    "-A {target} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}:{ENDPOINT_PORT}"
                )?;
            }
        }
    }
    Ok(format!(
        "{IPTABLES_FILTER}{IPTABLES_NAT}{chains}{IPTABLES_HOOKS}{heads}{IPTABLES_LAST}{bodies}COMMIT\n"
    ))
}

const IPTABLES_FILTER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const IPTABLES_NAT: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
";

const IPTABLES_HOOKS: &str = "\
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
";

const IPTABLES_LAST: &str = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";

/// Input for `nft -f`.
pub fn nft(n: u32) -> Result<String, fmt::Error> {
    let (mut chains, mut elements, mut addresses) = (String::new(), Vec::new(), Vec::new());
    for (index, service) in services(n).enumerate() {
        addresses.push(service.address.to_string());
        nft_service(index, &service, &mut chains, &mut elements)?;
    }
    let (elements, addresses) = (elements.join(",\n"), addresses.join(","));
    Ok(format!(
        "table ip kube-proxy {{\n{NFT_CHAINS}{chains}\
         map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict\n\
         elements = {{ {elements} }} }}\n\
         set cluster-ips {{ type ipv4_addr\nelements = {{ {addresses} }} }}\n{NFT_HOOKS}}}\n"
    ))
}

/// The chains of a service, and what leads to them.
fn nft_service(
    index: usize,
    service: &Service,
    chains: &mut String,
    elements: &mut Vec<String>,
) -> fmt::Result {
    let to = service.address;
    for protocol in service.protocols().iter().map(|protocol| protocol.word()) {
        let name = format!("service-{index:0>8}-bench/s{index}/{protocol}/p");
        elements.push(format!("{to} . {protocol} . {SERVICE_PORT} : goto {name}"));
        let mut choices = Vec::new();
        for (place, endpoint) in service.endpoints.iter().enumerate() {
            let target = format!(
                "endpoint-{index:0>8}-bench/s{index}/{protocol}/p__{endpoint}/{ENDPOINT_PORT}"
            );
            writeln!(chains, "chain {target} {{")?;
            writeln!(chains, "ip saddr {endpoint} jump mark-for-masquerade")?;
            writeln!(
                chains,
                "meta l4proto {protocol} dnat to {endpoint}:{ENDPOINT_PORT}\n}}"
            )?;
            choices.push(format!("{place} : goto {target}"));
        }
        writeln!(chains, "chain {name} {{")?;
        writeln!(
            chains,
            "ip daddr {to} {protocol} dport {SERVICE_PORT} ip saddr != {PODS} jump mark-for-masquerade"
        )?;
        writeln!(
            chains,
            "numgen random mod 3 vmap {{ {} }}\n}}",
            choices.join(",")
        )?;
    }
    Ok(())
}

const NFT_CHAINS: &str = "\
map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
map service-nodeports { type inet_proto . inet_service : verdict; }
set nodeport-ips { type ipv4_addr; elements = { 198.51.100.1 } }
chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
chain reject-chain { reject; }
";

const NFT_HOOKS: &str = "\
chain services {
ip daddr . meta l4proto . th dport vmap @service-ips
ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}
chain masquerading {
meta mark & 0x4000 == 0 return
meta mark set meta mark xor 0x4000
masquerade fully-random
}
chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
chain cluster-ips-check { ip daddr @cluster-ips reject; }
chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
chain filter-input { type filter hook input priority -110; ct state new jump nodeport-endpoints-check
ct state new jump service-endpoints-check; }
chain filter-forward { type filter hook forward priority -110; ct state new jump service-endpoints-check
ct state new jump cluster-ips-check; }
chain filter-output { type filter hook output priority -110; ct state new jump service-endpoints-check
ct state new jump firewall-check; }
chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
chain nat-output { type nat hook output priority -100; jump services; }
chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
";

/// Input for `nft -f` that adds one more service to `n`.
pub fn nft_add(n: u32) -> Result<String, fmt::Error> {
    let (chains, element) = nft_extra(n)?;
    Ok(format!(
        "table ip kube-proxy {{\n{chains}}}\nadd element ip kube-proxy service-ips {{ {element} }}\n"
    ))
}

/// Input for `nft -f` that takes it away again.
pub fn nft_remove(n: u32) -> Result<String, fmt::Error> {
    let (chains, element) = nft_extra(n)?;
    let mut text = format!("delete element ip kube-proxy service-ips {{ {element} }}\n");
    let names = |prefix: &str| {
        let chains = chains
            .lines()
            .filter_map(|line| line.strip_prefix("chain "));
        let names = chains.filter_map(|line| line.strip_suffix(" {"));
        names
            .filter(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // Who jumps goes before whom it jumps to.
    for name in names("service-").into_iter().chain(names("endpoint-")) {
        writeln!(
            text,
            "flush chain ip kube-proxy {name}\ndelete chain ip kube-proxy {name}"
        )?;
    }
    Ok(text)
}

/// The chains and the map element of a service that is not among the first `n`.
fn nft_extra(n: u32) -> Result<(String, String), fmt::Error> {
    let (mut chains, mut elements) = (String::new(), Vec::new());
    if let Some(service) = services(n + 2).last() {
        nft_service(n as usize + 1, &service, &mut chains, &mut elements)?;
    }
    Ok((chains, elements.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_service_of_many_is_measured() {
        let all: Vec<Service> = services(1000).collect();
        assert_eq!(all.len(), 1000);
        let there: Vec<&Service> = all
            .iter()
            .filter(|service| service.endpoints == ENDPOINTS)
            .collect();
        assert_eq!(there.len(), 1);
        assert_eq!(there[0].address, measured(1000));
    }

    #[test]
    fn rules_grow_with_services() {
        let count =
            |text: &str, what: &str| text.lines().filter(|line| line.contains(what)).count();
        // One chain per port and endpoint; the measured service has two ports.
        assert_eq!(count(&iptables(10).unwrap(), "-j DNAT"), 33);
        assert_eq!(count(&nft(10).unwrap(), "dnat to"), 33);
        assert_eq!(count(&nft(10).unwrap(), "numgen"), 11);
    }
}
