//! The whole chain as a user has it: a server behind a firewall that lets nothing but its SSH out to
//! one node, and pods on other nodes that reach its HTTPS and its broker all the same, through the
//! kernel's fast path and the tunnel.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::bed::{AMQP, Bed, HTTPS, Object, SSH, connects, run_in};
use crate::lab::layout::{self, Family, Layout};

/// Where the kernel of every node serves the server.
const SERVICE: [u8; 4] = [10, 96, 0, 99];

/// Makes the world, shows everything, and says whether all went where it had to.
pub fn run(out: &mut impl Write, world: &str) -> Result<bool> {
    let mut shows = Shows {
        out,
        start: Instant::now(),
        good: true,
    };
    shows.say(
        "\n  server --- firewall --- node1 (return proxy), node2, node3, two pods on each\n",
    )?;
    let layout = Layout {
        nodes: 3,
        ..Layout::STANDARD
    };
    let bed = Bed::with_layout(world, layout)?;
    shows.done("made the world, and a key pair for the server")?;
    let service: SocketAddr = (SERVICE, 0).into();
    let object = Object::default().with(&format!("serviceAddress: {}", service.ip()));
    bed.manifests(&object)?;
    firewall(&bed)?;
    shows.done(
        "the firewall lets the server's SSH to node1 in, and nothing else in any direction",
    )?;
    let _nginx = bed.start_nginx("")?;
    let _broker = bed.start_rabbitmq()?;
    shows.done("started nginx (TLS, 9443) and RabbitMQ (5672) at the server")?;
    let mut daemons = Vec::new();
    for number in layout.nodes() {
        daemons.push(bed.start_daemon(number)?);
    }
    shows.done("started `causeway run` on node1, node2 and node3")?;
    let pods = [bed.world().pod(3), bed.world().pod(5)];
    let direct: SocketAddr = SocketAddr::new(layout::client(Family::V4), 9443);
    let closed = pods.iter().all(|pod| !connects(pod, direct));
    shows.check("pods cannot reach the server at its own address", closed)?;
    let _node = bed.start_node()?;
    let _server = bed.start_server()?;
    let (_, took) = bed.wait_until_up()?;
    shows.done(&format!(
        "`causeway tunnel` is up {took:.1?} after its start"
    ))?;
    for (pod, name) in pods.iter().zip(["pod3 on node2", "pod5 on node3"]) {
        let https = SocketAddr::new(service.ip(), 9443);
        let page = bed
            .curl(pod, https, "/")
            .unwrap_or_else(|error| format!("{error:#}"));
        let well = page == "the central server\n";
        shows.check(
            &format!("{name}: curl https://{https}/ said {:?}", page.trim()),
            well,
        )?;
        let certificate = bed.certificate(pod, https)?;
        let own = bed.certificate(&bed.server(), "127.0.0.1:9443".parse()?)?;
        let same = certificate.contains("Fingerprint") && certificate == own;
        shows.check(
            &format!("{name}: the certificate is the server's own"),
            same,
        )?;
        let broker = format!("amqp://guest:guest@{}:5672", service.ip());
        let mut publish = Command::new("amqp-publish");
        let text = format!("job of {name}");
        let sent = run_in(
            pod,
            publish.args(["-u", &broker, "-r", "jobs", "-b", &text]),
        );
        let mut get = Command::new("amqp-get");
        let got = run_in(
            &bed.server(),
            get.args(["-u", "amqp://guest:guest@127.0.0.1:5672", "-q", "jobs"]),
        );
        let well = sent.is_ok() && got.as_ref().is_ok_and(|got| *got == text);
        shows.check(
            &format!("{name}: amqp-publish, and the server had {got:?}"),
            well,
        )?;
    }
    let at_node = SocketAddr::new(bed.node_address(), HTTPS);
    let page = bed.curl(&bed.world().room("node2"), at_node, "/");
    shows.check(
        &format!("node2 itself: curl https://{at_node}/"),
        page.is_ok(),
    )?;
    let carried = bed.counted(HTTPS, "opened")? >= 3 && bed.counted(AMQP, "opened")? >= 2;
    shows.check("the tunnel has counted them", carried)?;
    flows(&mut shows, &bed)?;
    for verb in ["status", "list"] {
        shows.say(&format!(
            "\n$ causeway tunnel {verb}\n{}",
            bed.show("server", verb)?
        ))?;
    }
    let good = shows.good;
    let verdict = if good {
        "All of it went through the kernel and the tunnel."
    } else {
        "SOMETHING FAILED."
    };
    shows.say(&format!("\n{verdict}\n"))?;
    Ok(good)
}

/// That the pods' kernel has carried their connections to the return proxy.
fn flows<W: Write>(shows: &mut Shows<'_, W>, bed: &Bed) -> Result<()> {
    let socket = bed.world().node_directory(2).join("causeway.sock");
    let mut list = Command::new(crate::lab::cluster::binary()?);
    list.arg("--socket").arg(socket).args(["flow", "list"]);
    let printed = run_in(&bed.world().node(2), &mut list)?;
    let way = format!("{}:{HTTPS}", bed.node_address());
    shows.check(
        "node2's kernel shows the flow to node1",
        printed.contains(&way),
    )
}

/// Rules at the router, which is all that there is between the server and the cluster.
fn firewall(bed: &Bed) -> Result<()> {
    let rules = format!(
        "table inet firewall {{\n  chain forward {{\n\
         type filter hook forward priority 0; policy drop;\n\
         ct state established,related accept\n\
         ip saddr {} ip daddr {} tcp dport {SSH} accept\n  }}\n}}\n",
        layout::client(Family::V4),
        bed.node_address()
    );
    let router = bed.world().room("router");
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    let mut child = router.enter(|| nft.spawn())?.context("running nft")?;
    let mut input = child.stdin.take().context("no pipe to nft")?;
    input.write_all(rules.as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "nft does not take the rules");
    Ok(())
}

struct Shows<'o, W> {
    out: &'o mut W,
    start: Instant,
    good: bool,
}

impl<W: Write> Shows<'_, W> {
    fn say(&mut self, text: &str) -> Result<()> {
        write!(self.out, "{text}")?;
        self.out.flush().context("printing")
    }

    fn done(&mut self, what: &str) -> Result<()> {
        let took: Duration = self.start.elapsed();
        self.start = Instant::now();
        self.say(&format!("{:6.1} s  {what}\n", took.as_secs_f64()))
    }

    fn check(&mut self, what: &str, well: bool) -> Result<()> {
        self.good &= well;
        let word = if well { "ok" } else { "FAILED" };
        self.say(&format!("  {word:<6}  {what}\n"))
    }
}
