//! The command line.
//!
//! [`main`] is all of `causeway`: it parses, does, prints and returns the exit code.

mod arguments;
mod check;
#[cfg(test)]
mod documents;
mod output;
mod pages;
mod plugin;
mod rows;
mod run;
mod show;
mod status;
mod tunnel;

use std::{io::Write, path::Path, process::ExitCode};

use clap::Parser;

use crate::config::{Config, ConfigError};
use arguments::{Arguments, Command};
pub use output::Format;
use output::Output;

/// Why a command failed, as its exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something that was tried did not work.
    Failed = 1,
    /// Wrong usage, as clap has it.
    Usage = 2,
    /// What was asked for isn't there.
    NotFound = 3,
    /// A configuration or manifests have errors.
    Invalid = 4,
    /// The daemon isn't running.
    NoDaemon = 5,
}

/// A failure that has an exit code of its own. Anything else is [`Exit::Failed`].
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What to tell; empty: everything has been told.
    pub message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let exit = match error {
            ConfigError::Read { .. } => Exit::NotFound,
            ConfigError::Syntax { .. } | ConfigError::Invalid { .. } => Exit::Invalid,
        };
        Self::new(exit, error.to_string())
    }
}

/// Reads a configuration that a command was given.
fn load(file: &Path) -> Result<Config, Failure> {
    Ok(Config::load(file)?)
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut output = Output::new(arguments.output, std::io::stdout());
    match dispatch(&arguments, &mut output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let own = error.downcast_ref::<Failure>();
            let told = own.is_some_and(|failure| failure.message.is_empty());
            if !told && !output::is_closed(&error) {
                // Nothing can be done about a standard error that is closed.
                let _ = writeln!(std::io::stderr(), "causeway: {error:#}");
            }
            ExitCode::from(own.map_or(Exit::Failed, |failure| failure.exit) as u8)
        }
    }
}

fn dispatch<W: Write>(arguments: &Arguments, output: &mut Output<W>) -> anyhow::Result<()> {
    match &arguments.command {
        Command::Run(run) => run::run(run),
        Command::Status => status::status(&arguments.socket(), output),
        Command::Service(noun) => show::services(arguments, noun, output),
        Command::Backend(noun) => show::backends(arguments, noun, output),
        Command::Flow(noun) => show::flows(arguments, noun, output),
        Command::Route(noun) => show::routes(arguments, noun, output),
        Command::Explain(packet) => show::explain(arguments, packet, output),
        Command::Drop(noun) => show::drops(arguments, noun, output),
        Command::Map(map) => show::maps(arguments, map, output),
        Command::Tunnel(tunnel) => tunnel::tunnel(arguments, tunnel, output),
        Command::Check(check) => check::check(check, output),
        Command::Detach(detach) => run::detach(arguments, detach, output),
        Command::Plugin(verb) => plugin::plugin(verb, output),
        Command::Completions { shell } => pages::completions(*shell, output),
        Command::Man { directory } => pages::man(directory.as_deref(), output),
    }
}
