//! The executable that a container runtime calls.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use proxy_cni::error::CniError;
use proxy_cni::plugin::{self, Unwatched};

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).ok();
    let mut text = String::new();
    let answer = match io::stdin().read_to_string(&mut text) {
        Ok(_) => plugin::answer(&variable, &text, &mut Unwatched),
        Err(error) => Err(CniError::io(
            "cannot read the configuration from stdin",
            &error,
        )),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&text), ExitCode::FAILURE),
    };
    // Whoever does not listen has no use for a complaint either.
    let _ = io::stdout().write_all(text.as_bytes());
    code
}
