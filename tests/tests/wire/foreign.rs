//! What is no service's passes as it is, byte by byte.

use std::{net::UdpSocket, process::Command, sync::Arc, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::{
    answer::{ECHO_PORT, HTTP_PORT},
    ask::{self, Means},
    capture::{Capture, Side},
    layout::{self, Family},
    world::World,
};

use crate::{services, worlds::Worlds};

pub(crate) fn trials(worlds: &Arc<Worlds>, has_vlans: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for world in services::possible(has_vlans) {
        for family in Family::BOTH {
            let worlds = Arc::clone(worlds);
            let name = format!("{world}/{}/foreign-packets-are-untouched", family.word());
            trials.push(Trial::test(name, move || {
                Ok(untouched(worlds.serving(world)?.world(), family)?)
            }));
        }
    }
    trials
}

/// Compares what leaves the client with what arrives in a pod, both ways.
pub(crate) fn untouched(world: &World, family: Family) -> Result<()> {
    let client = layout::client(family);
    // Node 2's own pod, by its own address: the way crosses the hooks of node 2 and of its pod.
    let pod = world.layout().pod(4, family);
    let filter = format!("host {client} and host {pod}");
    let name = |place: &str| format!("{place}-{}", family.word());
    let at_client = Capture::start(world, &world.client(), "eth0", &filter, &name("client"))?;
    let at_pod = Capture::start(world, &world.pod(4), "eth0", &filter, &name("pod4"))?;
    make_traffic(world, family)?;
    sleep(Duration::from_millis(300));
    let (at_client, at_pod) = (at_client.finish()?, at_pod.finish()?);
    for (way, sent, received) in [
        (
            "to the pod",
            at_client.packets(Side::Out),
            at_pod.packets(Side::In),
        ),
        (
            "from the pod",
            at_pod.packets(Side::Out),
            at_client.packets(Side::In),
        ),
    ] {
        ensure!(sent.len() > 20, "{way}: only {} packets", sent.len());
        ensure!(
            sent == received,
            "{way}: {} packets were sent, {} received, {} are not the same",
            sent.len(),
            received.len(),
            sent.iter().zip(&received).filter(|(a, b)| a != b).count()
        );
    }
    Ok(())
}

fn make_traffic(world: &World, family: Family) -> Result<()> {
    let (client, pod) = (world.client(), world.layout().pod(4, family));
    let limit = Duration::from_secs(3);
    for (means, port) in [
        (Means::Http, HTTP_PORT),
        (Means::Tcp, ECHO_PORT),
        (Means::Udp, ECHO_PORT),
    ] {
        let attempt = ask::ask(&client, means, (pod, port).into(), limit)?;
        attempt
            .outcome
            .pod()
            .with_context(|| format!("{means}: {}", attempt.outcome))?;
    }
    // Sizes around the MTU: the last two travel as fragments.
    for size in ["8", "56", "1400", "1472", "2000", "4000"] {
        let mut ping = Command::new("ping");
        ping.args(["-n", "-q", "-c", "2", "-i", "0.01", "-W", "2", "-s", size]);
        let output = client.output(ping.arg(pod.to_string()))?;
        ensure!(
            output.status.success(),
            "no answer to a ping of {size} bytes"
        );
    }
    let any = if pod.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    client.enter(|| {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(limit))?;
        let mut buffer = [0; 8_192];
        for size in [0, 1, 1_000, 3_000] {
            socket.send_to(&vec![0x5a; size], (pod, ECHO_PORT))?;
            let (length, _) = socket.recv_from(&mut buffer)?;
            if length <= size {
                bail!("{length} bytes answered {size}");
            }
        }
        Ok(())
    })?
}
