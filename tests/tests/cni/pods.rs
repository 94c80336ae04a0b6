//! What pods reach, and what is left of them.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use proxy_tests::lab::{
    answer::HTTP_PORT,
    layout::{Family, cluster_ip, node, pod_range},
    manifest,
};
use serde_json::{Value, json};

use super::runtime::{Runtime, curl, is_pinged};

/// Until the daemon has done what it was told by files.
fn eventually(mut done: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match done() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > Duration::from_secs(15) => return Err(error),
            Err(_) => sleep(Duration::from_millis(20)),
        }
    }
}

fn ports(mappings: &Value) -> Value {
    json!({ "runtimeConfig": { "portMappings": mappings } })
}

#[test]
fn pods_of_two_nodes_talk_without_translation() -> Result<()> {
    let mut runtime = Runtime::start("")?;
    let mut pods = Vec::new();
    for number in [1, 2, 1, 2] {
        pods.push(runtime.add(number, &json!({}))?);
    }
    for from in &pods {
        for to in &pods {
            for family in Family::BOTH {
                let (own, other) = (from.address(family)?, to.address(family)?);
                ensure!(
                    is_pinged(&from.room, other)?,
                    "{own} does not reach {other}"
                );
                let (name, seen) = curl(&from.room, other, HTTP_PORT)?;
                ensure!(
                    name == format!("pod{}", to.number) && seen == own,
                    "{name} saw {seen}"
                );
            }
        }
        // Its node, as the kubelet's probes do.
        for family in Family::BOTH {
            let host = runtime.world().node(from.node);
            curl(&host, from.address(family)?, HTTP_PORT)?;
        }
    }
    for pod in &pods {
        let range = pod_range(pod.node, Family::V4);
        ensure!(
            range.contains(&pod.address(Family::V4)?),
            "{:?} {range}",
            pod.addresses
        );
        let device = &pod.result.interfaces[0].name;
        let line = runtime.on_node(pod.node, "ip", &["link", "show", device])?;
        ensure!(line.contains("mtu 1500"), "{line}");
        runtime.call(
            pod.node,
            "CHECK",
            Some(pod.number),
            &json!({ "prevResult": pod.result }),
        )?;
        runtime.del(pod)?;
    }
    ensure!(
        runtime
            .on_node(1, "ip", &["-br", "link"])?
            .matches("cwp")
            .count()
            == 0
    );
    Ok(())
}

#[test]
fn a_pods_first_packet_meets_services() -> Result<()> {
    let mut runtime = Runtime::start("")?;
    let server = runtime.add(2, &json!({}))?;
    let mut objects = Vec::new();
    for family in Family::BOTH {
        let (word, ip) = match family {
            Family::V4 => ("IPv4", "v4"),
            Family::V6 => ("IPv6", "v6"),
        };
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("web-{ip}"), "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": word, "ports": [{"name": "", "port": HTTP_PORT}],
            "endpoints": [{"addresses": [server.address(family)?], "conditions": {"ready": true},
                           "nodeName": "node2"}],
        }));
    }
    let addresses = Family::BOTH.map(|family| cluster_ip(10, family));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": addresses[0], "clusterIPs": addresses,
                 "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80, "targetPort": HTTP_PORT}]},
    }));
    runtime.cluster.apply("web.yaml", &objects)?;
    // Each asks at once: the programs must be there when ADD returns.
    for _ in 0..8 {
        let client = runtime.add(1, &json!({}))?;
        for address in addresses {
            let (name, _) = curl(&client.room, address, 80)?;
            ensure!(name == "pod1", "{name}");
        }
        runtime.del(&client)?;
    }
    Ok(())
}

#[test]
fn host_ports_outlive_the_daemon_and_end_with_the_pod() -> Result<()> {
    let mut runtime = Runtime::start("")?;
    let everywhere = json!([{ "hostPort": 8081, "containerPort": HTTP_PORT, "protocol": "tcp" }]);
    let one_address = json!([{
        "hostPort": 8082, "containerPort": HTTP_PORT, "protocol": "tcp", "hostIP": node(1, Family::V4),
    }]);
    let first = runtime.add(1, &ports(&everywhere))?;
    let second = runtime.add(1, &ports(&one_address))?;
    let client = runtime.world().client();
    let answered = |family, port, by: u8| -> Result<()> {
        let (name, seen) = curl(&client, node(1, family), port)?;
        ensure!(name == format!("pod{by}"), "{name} answered");
        ensure!(
            seen == proxy_tests::lab::layout::client(family),
            "it saw {seen}"
        );
        Ok(())
    };
    answered(Family::V4, 8081, first.number)?;
    answered(Family::V6, 8081, first.number)?;
    answered(Family::V4, 8082, second.number)?;
    ensure!(
        answered(Family::V6, 8082, second.number).is_err(),
        "8082 is of one address alone"
    );

    // Without the daemon what is there goes on, nothing is added, and DEL works.
    runtime.kill_daemon(1)?;
    answered(Family::V4, 8081, first.number)?;
    answered(Family::V6, 8081, first.number)?;
    for (command, pod, code) in [("STATUS", None, "50 "), ("ADD", Some(9), "11 ")] {
        match runtime.call(1, command, pod, &json!({})) {
            Ok(_) => bail!("{command} without the daemon"),
            Err(error) => ensure!(error.to_string().starts_with(code), "{command}: {error}"),
        }
    }
    runtime.del(&second)?;
    runtime.restart_daemon(1)?;
    answered(Family::V4, 8081, first.number)?;
    ensure!(
        answered(Family::V4, 8082, second.number).is_err(),
        "8082 has no pod any more"
    );

    // Another pod takes the port over, although the first is still there, and keeps it.
    let third = runtime.add(1, &ports(&everywhere))?;
    answered(Family::V4, 8081, third.number)?;
    runtime.del(&first)?;
    answered(Family::V4, 8081, third.number)?;
    runtime.del(&third)?;
    eventually(|| match answered(Family::V4, 8081, third.number) {
        Ok(()) => bail!("8081 is still served"),
        Err(_) => Ok(()),
    })
}

#[test]
fn a_host_port_of_the_loopback_address_is_the_nodes_alone() -> Result<()> {
    let mut runtime = Runtime::start("")?;
    let loopback = json!([{
        "hostPort": 8083, "containerPort": HTTP_PORT, "protocol": "tcp", "hostIP": "127.0.0.1",
    }]);
    let pod = runtime.add(1, &ports(&loopback))?;
    // As upstream's spec of host ports asks: a pod cannot answer 127.0.0.1.
    let own = node(1, Family::V4).to_string();
    let url = "http://127.0.0.1:8083/";
    let answer = runtime.on_node(
        1,
        "curl",
        &["-sS", "--max-time", "5", "--interface", &own, url],
    )?;
    ensure!(
        answer.starts_with(&format!("pod{} {own} ", pod.number)),
        "{answer}"
    );
    let client = runtime.world().client();
    ensure!(
        curl(&client, node(1, Family::V4), 8083).is_err(),
        "it answers outside"
    );
    runtime.del(&pod)
}

#[test]
fn routes_follow_the_nodes_and_foreign_ones_stay() -> Result<()> {
    let runtime = Runtime::start("")?;
    let shown = |arguments: &[&str]| runtime.on_node(1, "ip", arguments);
    let ours = |family: &str| shown(&[family, "route", "show", "proto", "123"]);
    let [v4, v6] = Family::BOTH.map(|family| pod_range(2, family).to_string());
    let via = Family::BOTH.map(|family| format!(" via {} dev eth0", node(2, family)));
    let whole = || -> Result<()> {
        for (family, range, via) in [("-4", &v4, &via[0]), ("-6", &v6, &via[1])] {
            let routes = ours(family)?;
            ensure!(routes.contains(&format!("{range}{via}")), "{routes}");
            ensure!(routes.contains("unreachable "), "{routes}");
        }
        Ok(())
    };
    whole()?;
    runtime.on_node(
        1,
        "ip",
        &["route", "add", "10.9.0.0/16", "via", "192.0.2.12"],
    )?;
    // What somebody takes away comes back, with the next look that is taken every 10 s.
    shown(&["route", "del", &v4, "proto", "123"])?;
    eventually(whole)?;
    // A node that goes takes its routes with it, and only those.
    let mut nodes = manifest::nodes(runtime.world().layout());
    nodes.pop();
    runtime.cluster.apply("nodes.yaml", &nodes)?;
    eventually(|| {
        let routes = ours("-4")? + &ours("-6")?;
        ensure!(!routes.contains(" via "), "{routes}");
        Ok(())
    })?;
    ensure!(shown(&["route"])?.contains("10.9.0.0/16 via 192.0.2.12"));
    Ok(())
}

#[test]
fn what_leaves_the_cluster_carries_the_nodes_address() -> Result<()> {
    let mut runtime = Runtime::start("not_masqueraded = [\"198.51.100.0/25\"]\n")?;
    // The client has a second address, beyond the range that keeps sources.
    let client = runtime.world().client();
    let address = ["addr", "add", "198.51.100.200/24", "dev", "eth0"];
    client.output(Command::new("ip").args(address))?;
    runtime.serve_client()?;
    let pod = runtime.add(1, &json!({}))?;
    let far: std::net::IpAddr = "198.51.100.200".parse()?;
    let v6 = proxy_tests::lab::layout::client(Family::V6);
    for (target, source) in [
        (far, node(1, Family::V4)),
        (v6, node(1, Family::V6)),
        // Excluded by the configuration; the router knows the way back.
        (
            proxy_tests::lab::layout::client(Family::V4),
            pod.address(Family::V4)?,
        ),
    ] {
        ensure!(is_pinged(&pod.room, target)?, "{target} does not answer");
        let (_, seen) = curl(&pod.room, target, HTTP_PORT)?;
        ensure!(seen == source, "{target} saw {seen}");
    }
    // Between pods of two nodes nothing is translated.
    let other = runtime.add(2, &json!({}))?;
    let (_, seen) = curl(&pod.room, other.address(Family::V4)?, HTTP_PORT)?;
    ensure!(seen == pod.address(Family::V4)?, "a pod saw {seen}");
    // What somebody takes away comes back.
    let table = format!("causeway-{}", runtime.cluster.daemon(1)?.instance());
    runtime.on_node(1, "nft", &["delete", "table", "ip", &table])?;
    eventually(|| {
        let (_, seen) = curl(&pod.room, far, HTTP_PORT)?;
        ensure!(seen == node(1, Family::V4), "{far} saw {seen}");
        Ok(())
    })
}
