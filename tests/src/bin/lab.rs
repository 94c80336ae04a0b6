//! The product in a small world of its own.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use proxy_tests::lab::{answer, remains};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Remove the world that `demo --keep` left, and what killed runs left behind
    Down,
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

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Verb::Down => {
            remains::sweep()?;
            remains::remove("demo")?;
        }
        Verb::Echo { name, port } => answer::run_echo(&name, port)?,
    }
    Ok(ExitCode::SUCCESS)
}
