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
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Checks manifests or a configuration, without a daemon or root.
    ///
    /// Prints each mistake as `file:line: severity: object: field: message`.
    Check(Check),
    /// Runs the daemon, in the foreground.
    ///
    /// Adopts what an earlier run left in the kernel. What it puts there stays when it ends, by
    /// whatever means: `causeway detach` removes it.
    Run(Run),
    /// Takes every program, map and pin out of the kernel. Connections through services end.
    ///
    /// Works without a daemon. A daemon that runs would put everything back.
    Detach(Detach),
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
    /// The configuration that names the instance; without it: the instance "default".
    #[arg(short, long, conflicts_with = "instance")]
    pub(super) config: Option<PathBuf>,
    /// The instance.
    #[arg(long)]
    pub(super) instance: Option<String>,
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
