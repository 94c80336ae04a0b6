//! Causeway in a small world of its own: network namespaces with a client, a router, two nodes and
//! four pods.

use std::{
    env,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use proxy_tests::lab::{
    answer,
    cluster::Hook,
    demo, dial,
    namespace::Namespace,
    remains::{self, Owner},
    watch::{be_watched, exit_code, need_root, watch},
};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Name of the world: letters and digits
    #[arg(long, global = true, value_name = "NAME", default_value = "demo")]
    world: String,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a world, run Causeway on its nodes, send traffic, and show what went where
    Demo {
        /// What to show
        #[arg(value_enum, default_value_t)]
        what: What,
        /// Leave it running, and print what can be tried
        #[arg(long)]
        keep: bool,
        /// The Kubernetes manifests to serve
        #[arg(long, value_name = "DIR", default_value_os_t = default_manifests())]
        manifests: PathBuf,
        /// Take packets at native XDP on the uplinks, as on physical devices
        #[arg(long)]
        xdp: bool,
        /// Do the work, in a process that another one watches
        #[arg(long, hide = true)]
        watched: bool,
    },
    /// Remove what `demo --keep` left, and what killed runs left behind
    Down,
    /// Run a command in a room of the world that `demo --keep` left
    Exec {
        /// `client`, `router`, `node1`, `pod3`, ...
        room: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Ask by one socket, and tell what it says
    #[command(hide = true)]
    Dial(dial::Dial),
    /// Answer UDP datagrams and TCP lines with a name and the client's address
    #[command(hide = true)]
    Echo {
        /// The name to answer with
        #[arg(long)]
        name: String,
        /// The port to listen on
        #[arg(long)]
        port: u16,
    },
}

/// What the demo shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Every kind of service
    #[default]
    Services,
    /// A server behind a firewall, reached through the return proxy
    ReturnProxy,
}

fn default_manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo")
}

fn main() -> Result<ExitCode> {
    let Arguments { world, command } = Arguments::parse();
    match command {
        Verb::Demo { watched: false, .. } => watch(&[&world]),
        Verb::Demo {
            what: What::ReturnProxy,
            ..
        } => {
            be_watched()?;
            let good = proxy_tests::tunnel::demo::run(&mut io::stdout().lock(), &world)?;
            Ok(ExitCode::from(u8::from(!good)))
        }
        Verb::Demo {
            keep,
            manifests,
            xdp,
            ..
        } => demonstrate(&demo::Options {
            world,
            keep,
            manifests,
            hook: if xdp { Hook::Xdp } else { Hook::Tc },
            lab: env::current_exe()?,
        }),
        Verb::Down => down(&world),
        Verb::Exec { room, command } => execute(&world, &room, &command),
        Verb::Dial(dial) => {
            let told = serde_json::to_string(&dial.run()?)?;
            writeln!(io::stdout(), "{told}")?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Echo { name, port } => answer::run_echo(&name, port).map(|()| ExitCode::SUCCESS),
    }
}

fn demonstrate(options: &demo::Options) -> Result<ExitCode> {
    be_watched()?;
    let good = demo::run(&mut io::stdout().lock(), options)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn down(world: &str) -> Result<ExitCode> {
    need_root()?;
    let mut removed = remains::sweep()?;
    match remains::owner(world) {
        Owner::Nobody => {}
        Owner::Running => bail!("a demo is running; end it with Ctrl-C"),
        Owner::Kept | Owner::Gone => {
            remains::remove(world)?;
            removed.push(world.to_owned());
        }
    }
    let mut out = io::stdout().lock();
    match removed.as_slice() {
        [] => writeln!(out, "nothing to remove")?,
        names => writeln!(out, "removed: {}", names.join(", "))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn execute(world: &str, room: &str, command: &[String]) -> Result<ExitCode> {
    need_root()?;
    if remains::owner(world) == Owner::Nobody {
        bail!("there is no world; make one with `demo --keep`");
    }
    let mut namespace = Namespace::named(format!("{}{room}", remains::prefix(world)));
    let bpffs = remains::directory(world).join(room).join("bpf");
    if bpffs.exists() {
        namespace = namespace.with_bpffs(bpffs);
    }
    let (program, arguments) = command.split_first().context("no command")?;
    let status = namespace
        .enter(|| Command::new(program).args(arguments).status())?
        .with_context(|| format!("running {program} in {room}"))?;
    Ok(exit_code(status.code()))
}
