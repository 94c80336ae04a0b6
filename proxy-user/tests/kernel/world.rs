//! A network namespace for one test, and a BPF file system of its own.

use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use proxy_user::dataplane::PinFolder;

/// The calling thread's own namespace and pins, for as long as it lives.
pub(crate) struct World {
    bpffs: PathBuf,
}

impl World {
    /// Moves the calling thread into a new network namespace.
    pub(crate) fn new(name: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        // A mount namespace too: /sys shows the network namespace that it was mounted in.
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
        let bpffs = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&bpffs).unwrap();
        ip(&["link", "set", "lo", "up"]);
        Self { bpffs }
    }

    /// Where this world's pins are.
    pub(crate) fn folder(&self) -> PinFolder {
        PinFolder::under(&self.bpffs, "test")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.bpffs);
    }
}

/// Runs a program, which must succeed, and returns what it printed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `ip`.
pub(crate) fn ip(arguments: &[&str]) {
    output("ip", arguments);
}
