//! QEMU, with a time-out.

use std::env;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Memory of a guest, in MiB: the flow tables are allocated in full.
const MEMORY: &str = "1536";

/// The processor that is emulated. QEMU before 8.0 gets the flags after `cmpxchg16b` wrong where
/// another instruction has just set them, since it does not store which one before it calls
/// `helper_cmpxchg16b_unlocked` (target/i386/tcg/translate.c). From 6.6 on the kernel's allocator
/// uses that instruction, and an interrupt behind it returns to an impossible state: a general
/// protection fault in `__kmalloc_noprof`, now and then. Page tables of five levels only cost time.
const PROCESSOR: &str = "max,-cx16,-la57";

/// What a guest did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Everything that came over the serial line.
    pub(super) serial: String,
    /// From start to end of the emulator.
    pub(super) took: Duration,
    /// The guest was still running when its time was over.
    pub(super) cut_off: bool,
}

/// Boots an image with an archive as its file system, until it powers off or time is over.
///
/// QEMU ends well even when the kernel has panicked: only what the serial line says counts.
pub(super) fn run(image: &Path, archive: &Path, time_out: Duration) -> Result<Outcome> {
    // Nested KVM opens and then fails on many machines, so it is used on request only.
    let accelerator = env::var("VM_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
    let start = Instant::now();
    let mut machine = Machine(
        Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                &accelerator,
                "-cpu",
                PROCESSOR,
                "-m",
                MEMORY,
                "-smp",
                "1",
            ])
            .args([
                "-nodefaults",
                "-nographic",
                "-no-reboot",
                "-serial",
                "stdio",
            ])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(archive)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64: `cargo xtask setup`")?,
    );
    let mut line = machine.0.stdout.take().context("no pipe to QEMU")?;
    let (send, receive) = mpsc::sync_channel(1);
    let reader = thread::spawn(move || {
        let mut serial = Vec::new();
        let result = line.read_to_end(&mut serial);
        // Nobody listens any more once time is over.
        let _too_late = send.send(());
        result.map(|_| serial)
    });
    let cut_off = receive.recv_timeout(time_out).is_err();
    drop(machine);
    let serial = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader of the serial line broke off"))?
        .context("cannot read the serial line")?;
    Ok(Outcome {
        serial: String::from_utf8_lossy(&serial).into_owned(),
        took: start.elapsed(),
        cut_off,
    })
}

/// An emulator that does not outlive us.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}
