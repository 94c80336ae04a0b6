//! What runs in a guest: static executables and the init that starts them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::kernel::Kernel;
use crate::suite::DATAPATH;
use crate::{process, workspace};

/// Says how each executable ended, then that all of them have.
pub(super) const MARKER: &str = "causeway-guest:";

const INIT: &str = include_str!("init.sh");

/// The executables, built for guests.
#[derive(Clone, Debug)]
pub(super) struct Executables {
    /// Loads every program and prints what the verifier says.
    pub(super) programs: PathBuf,
    /// The datapath cases; none as long as the tests crate has none.
    pub(super) datapath: Option<PathBuf>,
}

impl Executables {
    /// Builds them.
    pub(super) fn build() -> Result<Self> {
        println!("building static executables for the guests");
        let mut built = Vec::new();
        artifacts("build", &["--bin", "programs"], &mut built)?;
        let tests = workspace::root().join("tests/tests").join(DATAPATH);
        let has_cases = tests.is_dir() || tests.with_extension("rs").is_file();
        if has_cases {
            artifacts("test", &["--no-run", "--test", DATAPATH], &mut built)?;
        }
        let find = |name: &str| {
            built
                .iter()
                .find(|(target, _)| target == name)
                .map(|(_, path)| path.clone())
        };
        Ok(Self {
            programs: find("programs").context("cargo built no executable `programs`")?,
            datapath: find(DATAPATH),
        })
    }

    /// Each with its name in the guest.
    fn list(&self) -> Vec<(&'static str, &Path)> {
        let mut list = vec![("programs", self.programs.as_path())];
        if let Some(datapath) = &self.datapath {
            list.push((DATAPATH, datapath));
        }
        list
    }

    /// Their names, in the order in which the guest runs them.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.list().into_iter().map(|(name, _)| name).collect()
    }
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Runs cargo and adds the executables that it built, with the names of their targets.
fn artifacts(verb: &str, arguments: &[&str], built: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let output = process::cargo_for_tests(verb)
        .args(["--package", "proxy-tests"])
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the guests' executables do not build");
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            continue;
        };
        if let (Some(target), Some(executable)) = (message.target, message.executable) {
            built.push((target.name, executable));
        }
    }
    Ok(())
}

/// Packs a guest's file system into an archive in `folder`.
pub(super) fn pack(kernel: &Kernel, executables: &Executables, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    let _not_there_before = fs::remove_dir_all(&root);
    for part in [
        "bin", "dev", "modules", "proc", "run", "sys", "tests", "tmp",
    ] {
        fs::create_dir_all(root.join(part)).context("cannot make the guest's folders")?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("no /bin/busybox: `cargo xtask setup`")?;
    for entry in fs::read_dir(&kernel.modules).context("cannot list the modules")? {
        let entry = entry?;
        fs::copy(entry.path(), root.join("modules").join(entry.file_name()))
            .context("cannot copy a module")?;
    }
    for (name, path) in executables.list() {
        // A tenth of the size: it all goes through the emulated machine's memory.
        process::quiet(
            process::command("strip")
                .arg("-o")
                .arg(root.join("tests").join(name))
                .arg(path),
        )?;
    }
    let init = root.join("init");
    fs::write(&init, INIT).context("cannot write the guest's init")?;
    process::quiet(process::command("chmod").arg("755").arg(&init))?;

    let archive = folder.join("initramfs.gz");
    archive_of(&root, &archive)?;
    Ok(archive)
}

/// `cpio | gzip` over all files below `root`.
fn archive_of(root: &Path, archive: &Path) -> Result<()> {
    let names = process::quiet(process::command("find").arg(".").current_dir(root))?;
    let output = fs::File::create(archive).context("cannot create the archive")?;
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cpio: `cargo xtask setup`")?;
    let packed = cpio.stdout.take().context("no pipe from cpio")?;
    let gzip = Command::new("gzip")
        .arg("-1")
        .stdin(packed)
        .stdout(output)
        .spawn()
        .context("cannot start gzip")?;
    cpio.stdin
        .take()
        .context("no pipe to cpio")?
        .write_all(names.as_bytes())
        .context("cannot give the files' names to cpio")?;
    for mut child in [cpio, gzip] {
        let status = child.wait().context("cannot wait for cpio and gzip")?;
        if !status.success() {
            bail!("cannot pack the archive: {status}");
        }
    }
    Ok(())
}
