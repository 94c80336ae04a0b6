//! The cluster's own programs: built from the Go modules below `tests/cluster`, once, and kept
//! outside of the tree. What they are made from is pinned by the modules' `go.sum`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::image::{self, Entry, Image};
use crate::{process, workspace};

/// Every part of Kubernetes.
pub(crate) const KUBERNETES: &str = "kubernetes";
/// Answers and asks, in pods: what upstream's own tests use.
const AGNHOST: &str = "agnhost";
/// Holds a pod's namespaces.
const PAUSE: &str = "pause";
/// The cluster's name server.
const COREDNS: &str = "coredns";

/// The image of a pod's sandbox.
pub(crate) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
/// The image of pods that answer and ask; its name is that in upstream's tests.
pub(crate) const AGNHOST_IMAGE: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
/// The name server's image.
pub(crate) const COREDNS_IMAGE: &str = "registry.k8s.io/coredns/coredns:v1.15.0";

/// The oldest Go with which the modules build: the `go` lines of their `go.mod`.
const GO: (u32, u32) = (1, 26);

struct Program {
    name: &'static str,
    /// The module's folder, below `tests/cluster`.
    module: &'static str,
    package: &'static str,
    /// A guess, for the person who waits.
    minutes: &'static str,
}

/// In the order in which they are wanted first.
const PROGRAMS: [Program; 4] = [
    Program {
        name: KUBERNETES,
        module: "",
        package: ".",
        minutes: "about 7 minutes",
    },
    Program {
        name: PAUSE,
        module: "",
        package: "./pause",
        minutes: "seconds",
    },
    Program {
        name: COREDNS,
        module: "coredns",
        package: ".",
        minutes: "about 2 minutes",
    },
    Program {
        name: AGNHOST,
        module: "",
        package: "k8s.io/kubernetes/test/images/agnhost",
        minutes: "a minute",
    },
];

/// Names of `busybox` in images. Those that look up names are left out: a static C library crashes
/// in an image without its shared parts.
const APPLETS: [&str; 6] = ["cat", "grep", "ip", "ls", "sh", "sleep"];

/// The folder with all programs and images.
#[derive(Clone, Debug)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// Builds what is not there yet.
    pub(crate) fn build() -> Result<Self> {
        let go = go_version()?;
        let folder = workspace::cache()?
            .join("cluster/programs")
            .join(key(&modules(), &go)?);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for program in &PROGRAMS {
            let path = folder.join(program.name);
            if !path.is_file() {
                program.build(&path)?;
            }
        }
        let programs = Self(folder);
        programs.pack()?;
        Ok(programs)
    }

    /// What was built before, if it is what these sources make.
    pub(crate) fn built() -> Result<Self> {
        let go = go_version()?;
        let folder = workspace::cache()?
            .join("cluster/programs")
            .join(key(&modules(), &go)?);
        if !folder.join(KUBERNETES).is_file() {
            bail!("the cluster's programs are not built: `cargo xtask cluster up` builds them");
        }
        Ok(Self(folder))
    }

    /// A program's file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A part of Kubernetes, as a command.
    pub(crate) fn kubernetes(&self, part: &str) -> Command {
        let mut command = process::command(self.path(KUBERNETES));
        command.arg(part);
        command
    }

    /// The images, as archives.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        [PAUSE, AGNHOST, COREDNS]
            .map(|name| self.image(name))
            .into()
    }

    /// What is in images is chosen in this file.
    fn image(&self, name: &str) -> PathBuf {
        let chosen = short(include_bytes!("programs.rs"));
        self.0.join(format!("{name}-{chosen}.tar"))
    }

    /// Makes the images from the programs.
    fn pack(&self) -> Result<()> {
        let program = |name: &str| Entry::Program(name.to_owned(), self.path(name));
        let simple = |name: &str, image: &str| Image {
            names: vec![image.to_owned()],
            entrypoint: vec![format!("/{name}")],
            entries: vec![program(name)],
            ..Image::default()
        };
        let mut agnhost = simple(AGNHOST, AGNHOST_IMAGE);
        // Upstream's tests start it without arguments, and expect that it waits.
        agnhost.command = vec!["pause".to_owned()];
        agnhost.entries.extend([
            Entry::Folder("bin".to_owned(), 0o755),
            Entry::Folder("tmp".to_owned(), 0o1777),
            Entry::Program("bin/busybox".to_owned(), PathBuf::from("/bin/busybox")),
        ]);
        agnhost
            .entries
            .extend(APPLETS.map(|name| Entry::Link(format!("bin/{name}"), "busybox".to_owned())));
        let images = [
            (PAUSE, simple(PAUSE, PAUSE_IMAGE)),
            (AGNHOST, agnhost),
            (COREDNS, simple(COREDNS, COREDNS_IMAGE)),
        ];
        for (name, image) in images {
            let archive = self.image(name);
            if !archive.is_file() {
                image.write(&archive)?;
            }
        }
        Ok(())
    }
}

impl Program {
    fn build(&self, to: &Path) -> Result<()> {
        println!(
            "building {} ({} the first time on two cores)",
            self.name, self.minutes
        );
        let start = Instant::now();
        let module = modules().join(self.module);
        let partial = to.with_extension("partial");
        let mut flags = "-s -w".to_owned();
        if self.name == KUBERNETES {
            flags.push_str(&version_flags(&module)?);
        }
        process::run(
            go(&module)
                .args(["build", "-trimpath", "-ldflags", &flags, "-o"])
                .arg(&partial)
                .arg(self.package),
        )?;
        fs::rename(&partial, to).with_context(|| format!("cannot name {}", to.display()))?;
        println!("        {:.0} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// What the parts of Kubernetes are told that they are; clients choose by it what they may ask.
fn version_flags(module: &Path) -> Result<String> {
    let version =
        process::quiet(go(module).args(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]))?;
    let version = version.trim();
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("k8s.io/kubernetes has the version `{version}`, which is no release");
    };
    let package = "k8s.io/component-base/version";
    Ok(format!(
        " -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
}

/// Go in a module; nothing that it makes needs a C library or compiler.
fn go(module: &Path) -> Command {
    let mut command = process::command("go");
    command
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false");
    command
}

fn modules() -> PathBuf {
    workspace::root().join("tests/cluster")
}

/// The installed Go, if it is new enough.
fn go_version() -> Result<String> {
    let remedy = format!(
        "the cluster's programs are built with Go {}.{} or newer: install it from go.dev/dl and put \
         its `bin` on PATH",
        GO.0, GO.1
    );
    let Some(text) = process::answer(process::command("go").args(["env", "GOVERSION"])) else {
        bail!("there is no Go on PATH; {remedy}");
    };
    let version = text.trim();
    if !new_enough(version) {
        bail!("Go is {version}; {remedy}");
    }
    Ok(version.to_owned())
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches("go")
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= GO,
        _ => false,
    }
}

/// Names what these sources and this Go make.
fn key(modules: &Path, go: &str) -> Result<String> {
    let mut parts = format!("{go} {}\n", std::env::consts::ARCH).into_bytes();
    for file in [
        "go.mod",
        "go.sum",
        "main.go",
        "pause/main.go",
        "coredns/go.mod",
        "coredns/go.sum",
        "coredns/main.go",
    ] {
        let path = modules.join(file);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        parts.extend(format!("{file} {}\n", text.len()).into_bytes());
        parts.extend(text);
    }
    Ok(short(&parts))
}

fn short(bytes: &[u8]) -> String {
    let mut digest = image::digest(bytes);
    digest.truncate(16);
    digest
}

/// Held by whoever builds, starts or ends something of the cluster; others wait.
pub(crate) fn lock() -> Result<File> {
    let folder = workspace::cache()?.join("cluster");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        println!("waiting for another `cargo xtask cluster`");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::{key, modules, new_enough};

    #[test]
    fn go_is_compared_by_number() {
        assert!(new_enough("go1.26.8"));
        assert!(new_enough("go1.30rc1"));
        assert!(new_enough("go2.0"));
        assert!(!new_enough("go1.9"));
        assert!(!new_enough("go1.25.11"));
        assert!(!new_enough("devel +abc"));
    }

    #[test]
    fn another_go_makes_other_programs() {
        let one = key(&modules(), "go1.26.8").unwrap();
        assert_eq!(one, key(&modules(), "go1.26.8").unwrap());
        assert_ne!(one, key(&modules(), "go1.27.0").unwrap());
    }
}
