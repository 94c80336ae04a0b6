//! The cluster's own programs: built from the Go modules below `tests/cluster`, once, and kept
//! outside of the tree. What they are made from is pinned by the modules' `go.sum`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{image, process, workspace};

/// Every part of Kubernetes.
pub(crate) const KUBERNETES: &str = "kubernetes";
/// Answers and asks, in pods: what upstream's own tests use.
pub(crate) const AGNHOST: &str = "agnhost";
/// Holds a pod's namespaces.
pub(crate) const PAUSE: &str = "pause";
/// The cluster's name server.
pub(crate) const COREDNS: &str = "coredns";

/// Upstream's end-to-end suite, and what runs its specs.
pub(crate) const SUITE: &str = "e2e.test";
pub(crate) const GINKGO: &str = "ginkgo";
/// Sends what trips a kernel that takes answers beyond a window for new connections.
pub(crate) const REGRESSION: &str = "regression-issue-74839";

/// The oldest Go with which the modules build: the `go` lines of their `go.mod`.
const GO: (u32, u32) = (1, 26);

/// What the programs are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// An API server, and kube-proxy.
    ApiServer,
    /// A cluster that works.
    Cluster,
    /// And upstream's specs.
    Specs,
}

struct Program {
    name: &'static str,
    wanted: Use,
    /// The module's folder, below `tests/cluster`.
    module: &'static str,
    /// For a test's executable, the folder with it.
    package: &'static str,
    /// A guess, for the person who waits.
    minutes: &'static str,
}

/// In the order in which they are wanted first.
const PROGRAMS: [Program; 7] = [
    Program {
        name: KUBERNETES,
        wanted: Use::ApiServer,
        module: "",
        package: ".",
        minutes: "about 7 minutes",
    },
    Program {
        name: PAUSE,
        wanted: Use::Cluster,
        module: "",
        package: "./pause",
        minutes: "seconds",
    },
    Program {
        name: COREDNS,
        wanted: Use::Cluster,
        module: "coredns",
        package: ".",
        minutes: "about 2 minutes",
    },
    Program {
        name: AGNHOST,
        wanted: Use::Cluster,
        module: "",
        package: "k8s.io/kubernetes/test/images/agnhost",
        minutes: "a minute",
    },
    Program {
        name: SUITE,
        wanted: Use::Specs,
        module: "",
        package: "./e2e",
        minutes: "about 2 minutes",
    },
    Program {
        name: GINKGO,
        wanted: Use::Specs,
        module: "",
        package: "github.com/onsi/ginkgo/v2/ginkgo",
        minutes: "seconds",
    },
    Program {
        name: REGRESSION,
        wanted: Use::Specs,
        module: "",
        package: "k8s.io/kubernetes/test/images/regression-issue-74839",
        minutes: "seconds",
    },
];

/// The folder with all programs and images.
#[derive(Clone, Debug)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// Builds what is not there yet.
    pub(crate) fn build(wanted: Use) -> Result<Self> {
        let go = go_version()?;
        let folder = workspace::cache()?
            .join("cluster/programs")
            .join(key(&modules(), &go)?);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for program in PROGRAMS.iter().filter(|program| program.wanted <= wanted) {
            let path = folder.join(program.name);
            if !path.is_file() {
                program.build(&path)?;
            }
        }
        Ok(Self(folder))
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
        if matches!(self.name, KUBERNETES | SUITE) {
            flags.push_str(&version_flags(&module)?);
        }
        let mut go = go(&module);
        if self.name == SUITE {
            go.args(["test", "-c"]);
        } else {
            go.arg("build");
        }
        process::run(
            go.args(["-trimpath", "-ldflags", &flags, "-o"])
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

/// Upstream's source, where Go keeps it.
pub(crate) fn upstream() -> Result<PathBuf> {
    let folder =
        process::quiet(go(&modules()).args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]))?;
    Ok(PathBuf::from(folder.trim()))
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
        "e2e/e2e_test.go",
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

pub(crate) fn short(bytes: &[u8]) -> String {
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
