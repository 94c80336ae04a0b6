//! The log: lines for people at a terminal and for the journal, or JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text; with times and colours only where nobody else adds times.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log of this process, on standard error. `RUST_LOG` says how much; without it, `info`.
/// A second call changes nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // Fails if a log is there already: then that one stays.
    let _ = match format {
        LogFormat::Json => builder.json().try_init(),
        // The journal adds its own times.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            builder.with_ansi(false).without_time().try_init()
        }
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            builder.with_ansi(colours).with_timer(SystemTime).try_init()
        }
    };
}
