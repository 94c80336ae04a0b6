//! Debian's cloud kernels: found in the archive that this machine uses, downloaded once, kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// Kernel series that are tested by default.
pub(crate) const SERIES: [&str; 4] = ["5.10", "6.1", "6.12", "7"];

/// Debian's releases whose packages are looked at, the oldest first.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Modules that tests in a guest use.
const MODULES: [&str; 6] = [
    "veth",
    "dummy",
    "8021q",
    "sch_ingress",
    "cls_bpf",
    "act_gact",
];

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// As asked for: `6.12`.
    pub(super) series: String,
    /// As `uname -r` says it.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// Modules, unpacked; their names sort in the order in which they load.
    pub(super) modules: PathBuf,
}

/// Takes each series' newest kernel out of the cache, and downloads those that are not there.
pub(super) fn fetch(series: &[String], refresh: bool) -> Result<Vec<Kernel>> {
    let cache = workspace::cache()?.join("kernels");
    let mut archive = None;
    let mut kernels = Vec::new();
    for series in series {
        let folder = cache.join(series);
        if !refresh && let Some(kernel) = cached(series, &folder) {
            kernels.push(kernel);
            continue;
        }
        if archive.is_none() {
            println!("looking for kernels in Debian's archive");
            archive = Some(Archive::open(&cache.join("apt"))?);
        }
        let archive = archive.as_ref().context("no archive was opened")?;
        archive
            .download(series, &folder)
            .with_context(|| format!("cannot get a kernel {series}"))?;
        let kernel = cached(series, &folder)
            .with_context(|| format!("the kernel {series} is incomplete after its download"))?;
        println!("kernel {series}: {} downloaded", kernel.release);
        kernels.push(kernel);
    }
    Ok(kernels)
}

fn cached(series: &str, folder: &Path) -> Option<Kernel> {
    let release = fs::read_to_string(folder.join("release")).ok()?;
    let image = folder.join("vmlinuz");
    let modules = folder.join("modules");
    (image.is_file() && modules.is_dir()).then(|| Kernel {
        series: series.to_owned(),
        release: release.trim().to_owned(),
        image,
        modules,
    })
}

/// Debian's archive, through apt with lists of its own: this machine's are left alone.
struct Archive {
    folder: PathBuf,
    packages: Vec<String>,
}

impl Archive {
    fn open(folder: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(folder.join(part)).context("cannot make apt's folders")?;
        }
        let source = debian_archive()?;
        let lines = SUITES
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {source} {suite} main\n"));
        fs::write(folder.join("sources.list"), lines.concat())
            .context("cannot write apt's sources")?;
        let mut archive = Self {
            folder: folder.to_owned(),
            packages: Vec::new(),
        };
        process::quiet(archive.apt("apt-get").args(["--quiet", "update"]))?;
        let names = process::quiet(archive.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        archive.packages = names.lines().map(str::to_owned).collect();
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = process::command(program);
        let option = |name: &str, path: &Path| format!("-o{name}={}", path.display());
        command
            .arg(option(
                "Dir::Etc::sourcelist",
                &self.folder.join("sources.list"),
            ))
            .arg("-oDir::Etc::sourceparts=-")
            .arg(option("Dir::State::lists", &self.folder.join("lists")))
            .arg(option("Dir::Cache", &self.folder.join("cache")))
            .arg("-oAPT::Sandbox::User=root");
        command
    }

    /// Puts the newest kernel of a series into `folder`.
    fn download(&self, series: &str, folder: &Path) -> Result<()> {
        let version = newest(&self.packages, series)
            .with_context(|| format!("Debian has no cloud kernel {series}"))?;
        // Newer kernels come in three packages, older ones in one; the names tell.
        let packages: Vec<String> = ["image", "binary", "modules", "base"]
            .iter()
            .map(|part| format!("linux-{part}-{version}"))
            .filter(|name| self.packages.contains(name))
            .collect();
        let debs = self.folder.join("debs").join(&version);
        let root = debs.join("root");
        let _not_there_before = fs::remove_dir_all(&debs);
        fs::create_dir_all(&root).context("cannot make a folder for packages")?;
        process::quiet(
            self.apt("apt-get")
                .current_dir(&debs)
                .args(["--quiet", "download"])
                .args(&packages),
        )?;
        for entry in fs::read_dir(&debs).context("cannot list the packages")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                process::quiet(process::command("dpkg-deb").arg("-x").arg(path).arg(&root))?;
            }
        }
        let unpacked = Unpacked::new(root)?;
        let complete = debs.join("complete");
        unpacked.keep(&complete)?;
        let _not_there_before = fs::remove_dir_all(folder);
        fs::rename(&complete, folder).context("cannot move the kernel into the cache")?;
        fs::remove_dir_all(&debs).context("cannot remove the packages")
    }
}

/// The address of Debian's main archive, as this machine's apt has it.
fn debian_archive() -> Result<String> {
    let targets = process::quiet(process::command("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(str::to_owned)
        .context("apt knows no archive of Debian's: `apt-get update`, or add one to its sources")
}

/// The newest version among packages such as `linux-image-6.1.0-50-cloud-amd64`, without the
/// beginning: `6.1.0-50-cloud-amd64`.
fn newest(packages: &[String], series: &str) -> Option<String> {
    packages
        .iter()
        .filter_map(|name| {
            name.strip_prefix("linux-image-")
                .or_else(|| name.strip_prefix("linux-binary-"))
        })
        .filter(|version| version.ends_with("-cloud-amd64"))
        .filter(|version| {
            version
                .strip_prefix(series)
                .is_some_and(|rest| rest.starts_with(['.', '-', '+']))
        })
        .max_by_key(|version| numbers(version))
        .map(str::to_owned)
}

fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The contents of a kernel's packages.
struct Unpacked {
    root: PathBuf,
    release: String,
    image: PathBuf,
}

impl Unpacked {
    fn new(root: PathBuf) -> Result<Self> {
        // modprobe looks into lib/modules; newer packages use usr/lib/modules.
        if !root.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", root.join("lib"))
                .context("cannot link the modules' folder")?;
        }
        let modules = root.join("lib/modules");
        let release = fs::read_dir(&modules)
            .with_context(|| format!("no modules in {}", modules.display()))?
            .next()
            .context("no modules in the package")??
            .file_name()
            .to_string_lossy()
            .into_owned();
        let image = [
            root.join("boot").join(format!("vmlinuz-{release}")),
            modules.join(&release).join("vmlinuz"),
        ]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no image for {release} in the packages"))?;
        Ok(Self {
            root,
            release,
            image,
        })
    }

    /// Copies what a guest needs into a folder: the image, and modules with theirs in order.
    fn keep(&self, folder: &Path) -> Result<()> {
        let kept = folder.join("modules");
        fs::create_dir_all(&kept).context("cannot make the kernel's folder")?;
        fs::copy(&self.image, folder.join("vmlinuz")).context("cannot copy the image")?;
        let depmod = |program: &str| {
            let mut command = process::command(program);
            command
                .arg(if program == "depmod" { "-b" } else { "-d" })
                .arg(&self.root);
            command
        };
        process::quiet(depmod("depmod").arg(&self.release))?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for module in MODULES {
            let list = process::quiet(depmod("modprobe").args([
                "-S",
                &self.release,
                "--show-depends",
                module,
            ]))?;
            let needed = list
                .lines()
                .filter_map(|line| line.strip_prefix("insmod "))
                // What follows the path are options of this machine's configuration.
                .filter_map(|line| line.split_whitespace().next())
                .map(PathBuf::from);
            for path in needed {
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        for (number, path) in paths.iter().enumerate() {
            let name = path.file_name().context("a module without a name")?;
            let to = kept.join(format!("{number:02}-{}", name.to_string_lossy()));
            fs::copy(path, &to).with_context(|| format!("cannot copy {}", path.display()))?;
            if to.extension().is_some_and(|extension| extension == "xz") {
                process::quiet(process::command("xz").arg("--decompress").arg(&to))?;
            }
        }
        // Last: it marks the folder as complete.
        fs::write(folder.join("release"), &self.release).context("cannot write the release")
    }
}

#[cfg(test)]
mod tests {
    use super::newest;

    fn packages() -> Vec<String> {
        [
            "linux-image-6.1.0-47-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-image-6.1.0-50-amd64",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn the_newest_of_a_series_is_found_by_number() {
        let newest = |series| newest(&packages(), series);
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(
            newest("6.12").as_deref(),
            Some("6.12.107+deb13-cloud-amd64")
        );
        assert_eq!(newest("7").as_deref(), Some("7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest("5.15"), None);
    }
}
