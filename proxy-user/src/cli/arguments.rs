//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::Format;
use crate::telemetry::log::LogFormat;

/// Where `causeway run` looks for its configuration.
pub(super) const DEFAULT_CONFIG: &str = "/etc/causeway/causeway.toml";

/// Kubernetes services, NAT and port forwarding for one node, in XDP and TC.
#[derive(Debug, Parser)]
#[command(
    name = "causeway",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_long_help = "Exit codes:\n  \
        0  done\n  \
        1  something that was tried did not work\n  \
        2  wrong usage\n  \
        3  what was asked for isn't there\n  \
        4  a configuration or manifests have errors\n  \
        5  the daemon isn't running"
)]
pub(super) struct Arguments {
    /// How to print what was asked for.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(super) output: Format,
    /// The Causeway to look at, where there are several on one machine.
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    pub(super) instance: String,
    /// The daemon's socket [default: /run/causeway/<INSTANCE>.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Arguments {
    /// The daemon's socket.
    pub(super) fn socket(&self) -> PathBuf {
        let usual = || PathBuf::from(format!("/run/causeway/{}.sock", self.instance));
        self.socket.clone().unwrap_or_else(usual)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the daemon of this node, in the foreground.
    ///
    /// Attaches the programs, fills the maps from the manifests, and keeps both right until it is
    /// ended by SIGTERM or SIGINT. SIGHUP reads the configuration anew. It adopts what an earlier run
    /// left in the kernel, and what it puts there stays when it ends, by whatever means: services go
    /// on, and `causeway detach` is what removes them.
    Run(Run),
    /// Shows how the daemon is, and what is wrong with the manifests.
    Status,
    /// Shows service ports.
    #[command(subcommand)]
    Service(Noun),
    /// Shows backends.
    #[command(subcommand)]
    Backend(Noun),
    /// Shows connections.
    #[command(subcommand)]
    Flow(Noun),
    /// Shows the next hops of backends.
    #[command(subcommand)]
    Route(Noun),
    /// Says what would happen to a packet, at which step, because of which object.
    ///
    /// Runs the datapath itself over the live maps and the kernel's routing table. Nothing is sent,
    /// and nothing is changed.
    Explain(Explain),
    /// Shows why packets were dropped.
    #[command(subcommand)]
    Drop(Noun),
    /// Shows maps, record by record.
    #[command(subcommand)]
    Map(Map),
    /// Runs the return proxy, or shows how it is.
    ///
    /// Without a further word: the server's end, in the foreground. It dials the node that the
    /// manifests make the return proxy, by SSH, asks it to listen, and carries what comes to the
    /// server. SIGTERM or SIGINT ends it.
    Tunnel(super::tunnel::Tunnel),
    /// Checks manifests or a configuration, without a daemon or root.
    ///
    /// Prints each mistake as `file:line: severity: object: field: message`.
    Check(Check),
    /// Takes every program, map and pin out of the kernel. Connections through services end.
    ///
    /// Works without a daemon. A daemon that runs would put everything back.
    Detach(Detach),
    /// Puts the CNI plugin on this node, or takes it away.
    #[command(subcommand)]
    Plugin(super::plugin::Plugin),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Prints the manual page, or writes the pages of all commands to a directory.
    Man {
        /// The directory.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// The configuration.
    #[arg(short, long, default_value = DEFAULT_CONFIG)]
    pub(super) config: PathBuf,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    pub(super) log: LogFormat,
}

#[derive(Debug, Args)]
pub(super) struct Detach {
    /// The configuration that names the instance, instead of --instance.
    #[arg(short, long)]
    pub(super) config: Option<PathBuf>,
}

/// What to show of something. Needs root; without a daemon the maps' pins are read.
#[derive(Debug, Subcommand)]
pub(super) enum Noun {
    /// Shows all.
    #[command(visible_alias = "ls")]
    List,
    /// Shows those of one name or address.
    Get {
        /// A service (`name`, `namespace/name`, or the whole name), an address with or without port,
        /// or a reason.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// `tcp`, `udp`, `sctp`, or `icmp` for an echo request.
    pub(super) protocol: String,
    /// From whom: an address, with or without port.
    pub(super) source: String,
    /// To whom: an address and port, as `10.96.0.10:80` or `[fd00:96::10]:80`; of `icmp`: an address.
    pub(super) destination: String,
    /// The device that it comes in on; default: the one that leads back to the source.
    #[arg(long)]
    pub(super) device: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Map {
    /// Shows all maps and how full they are.
    #[command(visible_alias = "ls")]
    List,
    /// Shows all records of a map.
    Dump {
        /// The map, as `map list` names it.
        map: String,
        /// Shows bytes instead of fields.
        #[arg(long)]
        raw: bool,
    },
    /// Shows one record of a map.
    Get {
        /// The map, as `map list` names it.
        map: String,
        /// The key, as `map dump` shows it, in words or in hexadecimal.
        key: String,
        /// Shows bytes instead of fields.
        #[arg(long)]
        raw: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// A directory of manifests, a manifest, or a configuration (`.toml`).
    pub(super) path: PathBuf,
    /// The configuration that the manifests are for.
    #[arg(short, long)]
    pub(super) config: Option<PathBuf>,
    /// The node to check for; default: the configuration's, else the first one of the manifests.
    #[arg(long)]
    pub(super) node: Option<String>,
    /// Counts warnings as errors.
    #[arg(long)]
    pub(super) strict: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_make_sense() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_socket_follows_the_instance() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap();
        let usual = parse("causeway flow list --instance edge").socket();
        assert_eq!(usual, PathBuf::from("/run/causeway/edge.sock"));
        let given = parse("causeway --socket /s service get web -o json").socket();
        assert_eq!(given, PathBuf::from("/s"));
    }
}
