//! Running other programs, and saying which one failed.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Cargo of the pinned toolchain, in this repository.
pub(crate) fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    command
}

/// Cargo with a verb, for what tests run. It is linked statically, so that the same executables run
/// here and in guests, and so that everything is built once.
pub(crate) fn cargo_for_tests(verb: &str) -> Command {
    let mut command = cargo();
    command.arg(verb);
    if let Some(target) = target_for_tests() {
        command
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .args(["--target", target]);
    }
    command
}

/// With the target named, build scripts and macros stay as they are.
pub(crate) fn target_for_tests() -> Option<&'static str> {
    (env::consts::ARCH == "x86_64").then_some("x86_64-unknown-linux-gnu")
}

/// Any other program; what it reads on standard input is empty.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end, with its output shown; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command quietly; what it said is part of the error if it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Standard output of a command that exists and ends well.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    quiet(command).ok()
}

/// What of a command's standard output the person sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// All of it, as it comes.
    Everything,
    /// Nothing: what it says is for us.
    Nothing,
}

/// Runs a command and gives each line of its standard output to `line`; true if it ended well.
pub(crate) fn follow(
    command: &mut Command,
    mut line: impl FnMut(&str),
    shown_output: Shown,
) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let output = child.stdout.take().context("no pipe to the command")?;
    for text in BufReader::new(output).split(b'\n') {
        let text = text.context("cannot read what the command prints")?;
        let text = String::from_utf8_lossy(&text);
        if shown_output == Shown::Everything {
            println!("{text}");
        }
        line(&text);
    }
    Ok(child.wait()?.success())
}

/// The first executable of this name on `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _infallible = write!(text, " {}", argument.to_string_lossy());
    }
    text
}
