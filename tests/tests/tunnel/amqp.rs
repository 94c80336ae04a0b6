//! The broker's leg.

use std::{process::Command, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use proxy_tests::tunnel::bed::{Bed, Object, run_in};

/// Publishes and consumes from a pod, and holds an idle connection over more than three heartbeats.
#[test]
fn jobs_reach_the_broker_and_idle_connections_stay() -> Result<()> {
    let bed = Bed::new()?;
    bed.manifests(&Object::default())?;
    let _rabbit = bed.start_rabbitmq()?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    bed.wait_until_up()?;
    let url = format!("amqp://guest:guest@{}", bed.amqp());
    let pod = bed.pod();
    let mut publish = Command::new("amqp-publish");
    run_in(
        &pod,
        publish.args(["-u", &url, "-r", "jobs", "-b", "run this"]),
    )?;
    let mut get = Command::new("amqp-get");
    let got = run_in(&pod, get.args(["-u", &url, "-q", "jobs"]))?;
    ensure!(got == "run this", "{got}");
    // The broker's heartbeat is 2 s; pika answers only when it is asked to, as an idle client is.
    let script = format!(
        "import pika, time\n\
         c = pika.BlockingConnection(pika.URLParameters('{url}/%2F?heartbeat=2'))\n\
         ch = c.channel()\n\
         end = time.monotonic() + 9\n\
         while time.monotonic() < end: c.process_data_events(0.5)\n\
         ch.basic_publish('', 'jobs', b'after idling')\n\
         c.close()\n"
    );
    run_in(&pod, Command::new("/usr/bin/python3").args(["-c", &script]))?;
    sleep(Duration::from_millis(200));
    let mut get = Command::new("amqp-get");
    let got = run_in(&pod, get.args(["-u", &url, "-q", "jobs"]))?;
    ensure!(got == "after idling", "{got}");
    Ok(())
}
