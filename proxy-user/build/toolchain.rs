//! Finds the compiler and the linker that make the kernel object.
//!
//! `build.rs` and `xtask` both compile this file, so that `xtask setup` installs, `xtask doctor`
//! reports and the build uses one and the same choice.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's `rustc-web`, a complete current Rust for building browsers.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// `bpf-linker`'s release that the project is built and tested with.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

/// The oldest compiler release (major, minor) that builds the kernel programs.
const OLDEST_COMPILER: (u32, u32) = (1, 95);

/// Where a compiler came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A nightly toolchain of rustup with the component `rust-src`.
    Rustup,
    /// Debian's packages `rustc-web` and `rust-web-src`, unlocked by `RUSTC_BOOTSTRAP`.
    Debian,
}

/// `bpf-linker` and the LLVM it generates code with.
#[derive(Clone, Debug)]
pub(crate) struct Linker {
    /// The executable.
    pub(crate) path: PathBuf,
    /// LLVM's major version; `None` if LLVM is linked in statically and cannot be told.
    pub(crate) llvm: Option<u32>,
}

/// A compiler that has the library source for `-Z build-std=core`.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// Who installed it.
    pub(crate) origin: Origin,
    /// The executable.
    pub(crate) rustc: PathBuf,
    /// The cargo of the same toolchain; `None` means the cargo that runs us.
    pub(crate) cargo: Option<PathBuf>,
    /// Release, as `1.96.0`.
    pub(crate) release: String,
    /// LLVM's major version.
    pub(crate) llvm: u32,
    /// Folder of the library source.
    pub(crate) source: PathBuf,
}

/// A compiler and a linker that fit each other.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// Compiles to LLVM bitcode.
    pub(crate) compiler: Compiler,
    /// Links bitcode to the BPF object.
    pub(crate) linker: Linker,
}

/// What a machine lacks for building the kernel object.
#[derive(Clone, Debug)]
pub(crate) enum Missing {
    /// `bpf-linker` is neither on `PATH` nor in cargo's folder of executables.
    Linker,
    /// No compiler fits; each one looked at, with the reason.
    Compiler(Vec<String>),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linker => write!(f, "no bpf-linker on PATH or in cargo's bin folder"),
            Self::Compiler(rejected) => {
                write!(f, "no Rust compiler that can build for BPF")?;
                for reason in rejected {
                    write!(f, "; {reason}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Missing {}

impl Missing {
    /// What a build in this profile says when it leaves the kernel object out; an error if it may
    /// not.
    pub(crate) fn left_out(&self, profile: &str) -> Result<[String; 2], String> {
        let remedy = "`cargo xtask setup` installs it (bpf-linker, and a Rust compiler with its \
                      library source)";
        if profile == "release" {
            return Err(format!(
                "the kernel object cannot be built: {self}. {remedy}"
            ));
        }
        Ok([
            format!("the kernel object is left out: {self}. {remedy}"),
            "this build of causeway cannot run, only check and show".to_owned(),
        ])
    }
}

impl Toolchain {
    /// Looks for a linker, then for a compiler whose LLVM it can read: rustup's nightlies first
    /// (they bring clippy), then Debian's compiler.
    pub(crate) fn find() -> Result<Self, Missing> {
        let linker = Linker::find().ok_or(Missing::Linker)?;
        let compiler = Compiler::find(&linker)?;
        Ok(Self { compiler, linker })
    }

    /// A cargo of this toolchain, to be run in `workspace`, for the BPF target.
    ///
    /// `host_arch` is the architecture whose kernel runs the programs (`x86_64`). Everything that
    /// an outer cargo, clippy or rustup has put into the environment about compilers is taken out.
    pub(crate) fn cargo(&self, workspace: &Path, host_arch: &str) -> Command {
        let cargo = self.compiler.cargo.clone().unwrap_or_else(|| {
            env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
        });
        let mut command = Command::new(cargo);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(belongs_to_an_outer_build) {
                command.env_remove(name);
            }
        }
        command
            .current_dir(workspace)
            .env("RUSTC", &self.compiler.rustc)
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                self.rustflags(workspace, host_arch),
            );
        if self.compiler.origin == Origin::Debian {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    fn rustflags(&self, workspace: &Path, host_arch: &str) -> OsString {
        let mut flags: Vec<OsString> = vec![
            format!("--cfg=bpf_target_arch=\"{host_arch}\"").into(),
            // BTF is made from debug information.
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            // Otherwise bpf-linker has every memset, of 3 bytes too, done by a call and a loop over
            // bytes: the verifier follows each round, and so does each packet.
            "-Clink-arg=--disable-expand-memcpy-in-order".into(),
            // v3 (32-bit ALU and jumps) is in every kernel from 5.1; v4 would need 6.6.
            "-Ctarget-cpu=v3".into(),
        ];
        let mut linker = OsString::from("-Clinker=");
        linker.push(&self.linker.path);
        flags.push(linker);
        let home = cargo_home();
        let source = self.compiler.source.as_path();
        let folders = [
            (Some(workspace), "."),
            (home.as_deref(), "cargo"),
            (Some(source), "rust"),
        ];
        for (folder, name) in folders {
            if let Some(folder) = folder {
                let mut flag = OsString::from("--remap-path-prefix=");
                flag.push(folder);
                flag.push(format!("={name}"));
                flags.push(flag);
            }
        }
        flags.join(&OsString::from("\u{1f}"))
    }
}

impl Linker {
    /// The first `bpf-linker` on `PATH`, else the one in cargo's folder of executables.
    pub(crate) fn find() -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let installed = cargo_home().map(|home| home.join("bin"));
        Self::find_in(env::split_paths(&path).chain(installed))
    }

    fn find_in(folders: impl Iterator<Item = PathBuf>) -> Option<Self> {
        let path = folders
            .map(|folder| folder.join("bpf-linker"))
            .find(|candidate| candidate.is_file())?;
        let llvm = linked_llvm(&path);
        Some(Self { path, llvm })
    }
}

impl Compiler {
    /// The first compiler that can read the library source and whose bitcode `linker` can read.
    pub(crate) fn find(linker: &Linker) -> Result<Self, Missing> {
        let mut rejected = Vec::new();
        let candidates = Self::candidates(&mut rejected);
        Self::choose(candidates, linker, rejected)
    }

    fn choose(
        candidates: Vec<Self>,
        linker: &Linker,
        mut rejected: Vec<String>,
    ) -> Result<Self, Missing> {
        for candidate in candidates {
            match linker.llvm {
                Some(llvm) if candidate.llvm > llvm => rejected.push(format!(
                    "{} is built with LLVM {}, newer than the linker's {llvm}",
                    candidate.rustc.display(),
                    candidate.llvm
                )),
                _ => return Ok(candidate),
            }
        }
        Err(Missing::Compiler(rejected))
    }

    fn candidates(rejected: &mut Vec<String>) -> Vec<Self> {
        let mut found = Vec::new();
        for name in nightlies() {
            let Some(rustc) = output("rustup", &["which", "--toolchain", &name, "rustc"]) else {
                continue;
            };
            let rustc = PathBuf::from(rustc.trim());
            let cargo = rustc.with_file_name("cargo");
            match Self::inspect(Origin::Rustup, rustc, Some(cargo)) {
                Ok(compiler) => found.push(compiler),
                Err(reason) => rejected.push(format!("{name}: {reason}")),
            }
        }
        let debian = PathBuf::from(DEBIAN_RUSTC);
        if debian.is_file() {
            match Self::inspect(Origin::Debian, debian, None) {
                Ok(compiler) => found.push(compiler),
                Err(reason) => rejected.push(format!("{DEBIAN_RUSTC}: {reason}")),
            }
        }
        found
    }

    fn inspect(origin: Origin, rustc: PathBuf, cargo: Option<PathBuf>) -> Result<Self, String> {
        let program = rustc.to_string_lossy().into_owned();
        let version = output(&program, &["-vV"]).ok_or("does not run")?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let release = field("release:").unwrap_or_default().to_owned();
        if numbers(&release) < OLDEST_COMPILER {
            let (major, minor) = OLDEST_COMPILER;
            return Err(format!("release {release} is older than {major}.{minor}"));
        }
        let llvm = field("LLVM version:")
            .map(|version| numbers(version).0)
            .filter(|major| *major > 0)
            .ok_or("does not say which LLVM it is built with")?;
        let sysroot = output(&program, &["--print", "sysroot"]).ok_or("has no sysroot")?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
        if !source.join("library/core").is_dir() {
            return Err("the library source (component rust-src) is not installed".to_owned());
        }
        Ok(Self {
            origin,
            rustc,
            cargo,
            release,
            llvm,
            source,
        })
    }
}

/// Names of rustup's nightly toolchains, the undated one first.
fn nightlies() -> Vec<String> {
    let list = output("rustup", &["toolchain", "list"]).unwrap_or_default();
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.starts_with("nightly-x86_64")));
    names
}

/// The major version of the shared LLVM that an executable asks for, read from its strings.
fn linked_llvm(executable: &Path) -> Option<u32> {
    let needle = b"libLLVM.so.";
    let bytes = fs::read(executable).ok()?;
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)?;
    let digits: String = bytes
        .get(at + needle.len()..)?
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .map(|byte| char::from(*byte))
        .collect();
    digits.parse().ok()
}

/// The first two numbers of a version; 0 for what is not there.
fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn belongs_to_an_outer_build(name: &str) -> bool {
    const PREFIXES: [&str; 7] = [
        "CARGO_BUILD_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
    ];
    name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "CLIPPY_ARGS",
        ]
        .contains(&name)
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

/// Standard output of a command that ran and ended well.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(rustc: &str, llvm: u32) -> Compiler {
        Compiler {
            origin: Origin::Debian,
            rustc: rustc.into(),
            cargo: None,
            release: "1.96.0".to_owned(),
            llvm,
            source: PathBuf::new(),
        }
    }

    #[test]
    fn a_machine_without_a_linker_lacks_one() {
        let folder = env::temp_dir().join(format!("no-linker-{}", std::process::id()));
        fs::create_dir_all(folder.join("second")).unwrap();
        let folders = || [folder.clone(), folder.join("second")].into_iter();
        assert!(Linker::find_in(folders()).is_none());
        let linker = folder.join("second/bpf-linker");
        fs::write(&linker, "..libLLVM.so.22.1..").unwrap();
        let found = Linker::find_in(folders()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((found.path, found.llvm), (linker, Some(22)));
    }

    /// The linker's LLVM, the compilers', and which is chosen.
    #[test]
    fn the_first_compiler_is_chosen_whose_bitcode_the_linker_reads() {
        type Row<'t> = (Option<u32>, &'t [(&'t str, u32)], Option<&'t str>);
        let rows: [Row<'_>; 5] = [
            (
                Some(22),
                &[("new", 23), ("fits", 22), ("old", 21)],
                Some("fits"),
            ),
            (Some(22), &[("old", 21), ("fits", 22)], Some("old")),
            (Some(22), &[("new", 23)], None),
            (Some(22), &[], None),
            (None, &[("any", 99)], Some("any")),
        ];
        for (llvm, compilers, expected) in rows {
            let linker = Linker {
                path: PathBuf::new(),
                llvm,
            };
            let compilers = compilers.iter().map(|(name, llvm)| compiler(name, *llvm));
            let before = vec!["1.0: too old".to_owned()];
            match (
                Compiler::choose(compilers.collect(), &linker, before),
                expected,
            ) {
                (Ok(found), Some(expected)) => assert_eq!(found.rustc, PathBuf::from(expected)),
                (Err(missing), None) => assert!(missing.to_string().contains("too old")),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn only_a_release_build_fails_without_a_toolchain() {
        let rejected = vec!["nightly has LLVM 23, newer than the linker's 22".to_owned()];
        for missing in [Missing::Linker, Missing::Compiler(rejected)] {
            let [what, means] = missing.left_out("debug").unwrap();
            let refusal = missing.left_out("release").unwrap_err();
            for text in [&what, &refusal] {
                assert!(text.contains(&missing.to_string()), "{text}");
                assert!(text.contains("cargo xtask setup"), "{text}");
            }
            assert!(means.contains("cannot run"), "{means}");
        }
    }
}
