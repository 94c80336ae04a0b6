//! The cluster's images, made from its programs and from this machine's own: none can be fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::programs::{self, AGNHOST, COREDNS, PAUSE, Programs, REGRESSION, Use};
use crate::image::{Entry, Image};
use crate::process;

/// The image of a pod's sandbox.
pub(crate) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
/// The name server's image.
const COREDNS_IMAGE: &str = "registry.k8s.io/coredns/coredns:v1.15.0";
/// Where the images of upstream's tests are; `test/utils/image/manifest.go` has their numbers.
const TESTS: &str = "registry.k8s.io/e2e-test-images";

const BUSYBOX: &str = "busybox";
/// With the tools that specs call in it.
const AGNHOST_AND_TOOLS: &str = "agnhost-and-tools";

const STATIC_SHELL: &str = "/bin/busybox";

/// Names of `busybox` in images of a cluster. Those that look up names are left out: a static C
/// library crashes in an image without its shared parts.
const APPLETS: [&str; 6] = ["cat", "grep", "ip", "ls", "sh", "sleep"];

/// What upstream's image of agnhost has besides, and specs call. `busybox` is to be none of these, nor
/// the shell: Debian's takes its own applets first.
const TOOLS: [&str; 12] = [
    "bash", "curl", "dash", "dig", "getent", "ip", "iperf", "nc", "ping", "socat", "ss", "wget",
];

/// Makes the archives that are not there yet, and says where they are.
pub(crate) fn pack(programs: &Programs, wanted: Use) -> Result<Vec<PathBuf>> {
    let mut images = vec![PAUSE, COREDNS];
    match wanted {
        Use::ApiServer => {}
        Use::Cluster => images.push(AGNHOST),
        Use::Specs => images.extend([AGNHOST_AND_TOOLS, BUSYBOX, REGRESSION]),
    }
    // What is in them is chosen in this file.
    let chosen = programs::short(include_bytes!("images.rs"));
    images
        .into_iter()
        .map(|name| {
            let archive = programs.path(&format!("{name}-{chosen}.tar"));
            if !archive.is_file() {
                image(name, programs)?.write(&archive)?;
            }
            Ok(archive)
        })
        .collect()
}

fn image(name: &str, programs: &Programs) -> Result<Image> {
    let simple = |program: &str, image: String| Image {
        names: vec![image],
        entrypoint: vec![format!("/{program}")],
        entries: vec![Entry::Program(program.to_owned(), programs.path(program))],
        ..Image::default()
    };
    let mut image = match name {
        PAUSE => simple(PAUSE, PAUSE_IMAGE.to_owned()),
        COREDNS => simple(COREDNS, COREDNS_IMAGE.to_owned()),
        REGRESSION => simple(REGRESSION, format!("{TESTS}/{REGRESSION}:1.5")),
        BUSYBOX => Image {
            names: vec![format!("{TESTS}/busybox:1.37.0-2")],
            command: vec!["sh".to_owned()],
            ..Image::default()
        },
        _ => Image {
            names: vec![format!("{TESTS}/agnhost:2.66.1")],
            // Upstream's tests start it without arguments, and expect that it waits.
            command: vec!["pause".to_owned()],
            ..simple(AGNHOST, String::new())
        },
    };
    match name {
        AGNHOST => shell(&mut image, &APPLETS.map(str::to_owned)),
        AGNHOST_AND_TOOLS => {
            // The specs of the other C library's resolver: the same queries.
            image.names.push(format!("{TESTS}/glibc-dns-testing:2.1.1"));
            let applets: Vec<String> = applets()?
                .into_iter()
                .filter(|name| name != "sh" && !TOOLS.contains(&name.as_str()))
                .collect();
            shell(&mut image, &applets);
            image.entries.extend(tools()?);
            let porter = programs::upstream()?.join("test/images/agnhost/porter");
            image.entries.extend(
                ["localhost.crt", "localhost.key"]
                    .map(|name| Entry::Program(name.to_owned(), porter.join(name))),
            );
            image.entries.extend([
                Entry::Link("bin/sh".to_owned(), "/usr/bin/dash".to_owned()),
                Entry::Program(COREDNS.to_owned(), programs.path(COREDNS)),
                Entry::Folder("uploads".to_owned(), 0o755),
            ]);
        }
        BUSYBOX => shell(&mut image, &applets()?),
        _ => {}
    }
    Ok(image)
}

/// Adds the static shell, by these names.
fn shell(image: &mut Image, applets: &[String]) {
    image.entries.extend([
        Entry::Folder("bin".to_owned(), 0o755),
        Entry::Folder("tmp".to_owned(), 0o1777),
        Entry::Program("bin/busybox".to_owned(), PathBuf::from(STATIC_SHELL)),
    ]);
    image.entries.extend(
        applets
            .iter()
            .map(|name| Entry::Link(format!("bin/{name}"), BUSYBOX.to_owned())),
    );
}

fn applets() -> Result<Vec<String>> {
    let listed = process::quiet(process::command(STATIC_SHELL).arg("--list"))?;
    Ok(listed
        .lines()
        .filter(|name| *name != BUSYBOX)
        .map(str::to_owned)
        .collect())
}

/// This machine's tools, with the shared libraries that they load.
fn tools() -> Result<Vec<Entry>> {
    let mut files = BTreeMap::new();
    for tool in TOOLS {
        let path = process::find(tool)
            .with_context(|| format!("{tool} is not on PATH: `cargo xtask setup --for cluster`"))?;
        for library in libraries(&path)? {
            files.insert(library.trim_start_matches('/').to_owned(), library.into());
        }
        files.insert(format!("usr/bin/{tool}"), path);
    }
    Ok(files
        .into_iter()
        .map(|(name, path)| Entry::Program(name, path))
        .collect())
}

fn libraries(program: &Path) -> Result<Vec<String>> {
    let listed = process::quiet(process::command("ldd").arg(program))?;
    Ok(paths(&listed))
}

/// From lines such as `libc.so.6 => /lib/libc.so.6 (0x7f...)` and `/lib64/ld.so.2 (0x7f...)`.
fn paths(listed: &str) -> Vec<String> {
    listed
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(str::to_owned)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::paths;

    #[test]
    fn libraries_are_read_from_what_the_loader_says() {
        let listed = "\tlinux-vdso.so.1 (0x00007f)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            paths(listed),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
