//! `causeway plugin`.

use std::{io::Write, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::output::Output;
use crate::plugin::{Folders, PLUGIN};

/// The network configuration that is installed; it is also an example in the documentation.
const CONFIGURATION: &str = include_str!("../../../examples/10-causeway.conflist");

#[derive(Debug, Subcommand)]
pub(super) enum Plugin {
    /// Puts the plugin on this node, then its configuration; sets others' configurations aside.
    ///
    /// Changes nothing where all is there already.
    Install {
        /// The plugin [default: `causeway-cni` beside this executable].
        #[arg(long, value_name = "FILE")]
        plugin: Option<PathBuf>,
        #[command(flatten)]
        folders: Where,
    },
    /// Removes both, and puts back the configurations that were set aside.
    Remove {
        #[command(flatten)]
        folders: Where,
    },
}

/// The container runtime's folders.
#[derive(Clone, Debug, Args)]
pub(super) struct Where {
    /// Where it looks for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    plugins: PathBuf,
    /// Where it looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    configurations: PathBuf,
}

impl From<&Where> for Folders {
    fn from(folders: &Where) -> Self {
        Self {
            plugins: folders.plugins.clone(),
            configurations: folders.configurations.clone(),
        }
    }
}

/// Installs or removes, and tells what was done.
pub(super) fn plugin<W: Write>(plugin: &Plugin, output: &mut Output<W>) -> anyhow::Result<()> {
    let done = match plugin {
        Plugin::Install { plugin, folders } => {
            let plugin = match plugin {
                Some(file) => file.clone(),
                None => std::env::current_exe()
                    .context("cannot tell where this executable is: name the plugin by --plugin")?
                    .with_file_name(PLUGIN),
            };
            Folders::from(folders).install(&plugin, CONFIGURATION)?
        }
        Plugin::Remove { folders } => Folders::from(folders).remove()?,
    };
    if done.is_empty() {
        return output.text("nothing had to be changed");
    }
    output.text(&done.join("\n"))
}
