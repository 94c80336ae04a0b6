//! Loads every kernel program and prints what the verifier says of it, one line of JSON each:
//! `causeway-program: {...}`. `cargo xtask verifier` reads it, on this machine and in guests.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use anyhow::{Context as _, Result};
use proxy_user::dataplane::load::embedded_object;
use proxy_user::dataplane::verification::verify;

fn main() -> Result<()> {
    let object = embedded_object()
        .context("this build has no kernel object: `cargo xtask setup`, then build again")?;
    for account in verify(object)? {
        let record = serde_json::json!({
            "name": account.name,
            "kind": account.hook,
            "instructions": account.instructions,
            "verified": account.verified,
            "stack_bytes": account.stack_bytes,
            "verification_us": account.verification.as_micros(),
            "load_us": account.load.as_micros(),
        });
        println!("causeway-program: {record}");
    }
    Ok(())
}
