//! Container images as files: the archives that `docker save` writes and `ctr images import` reads.
//!
//! One layer, one configuration, one manifest (Docker Image Specification v1.2). Times and owners
//! are zero, so equal contents are equal archives.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// An image with a single layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// What it is imported as.
    pub(crate) names: Vec<String>,
    /// What runs.
    pub(crate) entrypoint: Vec<String>,
    /// Its arguments, where a pod gives none.
    pub(crate) command: Vec<String>,
    /// What is in it; folders above come before what is in them.
    pub(crate) entries: Vec<Entry>,
}

/// One thing in an image, by its path from the root without a leading slash.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// A folder with these rights.
    Folder(String, u32),
    /// An executable, copied from this machine.
    Program(String, PathBuf),
    /// A symbolic link, and where it leads.
    Link(String, String),
}

impl Image {
    /// Writes the archive; a reader never sees half of one.
    pub(crate) fn write(&self, archive: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let configuration = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        }))?;
        let configuration_name = format!("{}.json", digest(&configuration));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest = serde_json::to_vec(&json!([{
            "Config": configuration_name,
            "RepoTags": self.names,
            "Layers": [layer_name],
        }]))?;

        let partial = archive.with_extension("partial");
        let file = File::create(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        let mut builder = Builder::new(file);
        for (name, bytes) in [
            (configuration_name.as_str(), &configuration),
            (layer_name.as_str(), &layer),
            ("manifest.json", &manifest),
        ] {
            add_file(&mut builder, name, bytes, 0o644)?;
        }
        builder.into_inner().context("cannot end the archive")?;
        fs::rename(&partial, archive).with_context(|| format!("cannot name {}", archive.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for entry in &self.entries {
            match entry {
                Entry::Folder(path, mode) => {
                    let mut header = header(EntryType::Directory, 0, *mode);
                    builder.append_data(&mut header, path, &[][..])
                }
                Entry::Link(path, to) => {
                    let mut header = header(EntryType::Symlink, 0, 0o777);
                    builder.append_link(&mut header, path, to)
                }
                Entry::Program(path, source) => {
                    let bytes = fs::read(source)
                        .with_context(|| format!("cannot read {}", source.display()))?;
                    add_file(&mut builder, path, &bytes, 0o755)?;
                    Ok(())
                }
            }
            .with_context(|| format!("cannot add {entry:?} to the image"))?;
        }
        builder.into_inner().context("cannot end the layer")
    }
}

fn add_file<W: std::io::Write>(
    builder: &mut Builder<W>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = header(EntryType::Regular, bytes.len() as u64, mode);
    builder
        .append_data(&mut header, path, bytes)
        .with_context(|| format!("cannot add {path} to the archive"))
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

/// SHA-256, as images name their parts by it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

/// This machine's, in the words of the Go toolchain, which images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io::Read as _;

    use anyhow::Result;
    use serde_json::Value;
    use tar::Archive;

    use super::{Entry, Image, digest};

    fn files(archive: impl std::io::Read) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for entry in Archive::new(archive).entries()? {
            let mut entry = entry?;
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(entry.path()?.to_string_lossy().into_owned(), bytes);
        }
        Ok(files)
    }

    #[test]
    fn an_archive_names_its_layer_by_what_is_in_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("program");
        fs::write(&program, "code")?;
        let image = Image {
            names: vec!["example.org/program:1".to_owned()],
            entrypoint: vec!["/program".to_owned()],
            entries: vec![
                Entry::Folder("bin".to_owned(), 0o755),
                Entry::Program("program".to_owned(), program),
                Entry::Link("bin/other".to_owned(), "/program".to_owned()),
            ],
            ..Image::default()
        };
        let (one, two) = (folder.path().join("1.tar"), folder.path().join("2.tar"));
        image.write(&one)?;
        image.write(&two)?;
        assert_eq!(fs::read(&one)?, fs::read(&two)?);

        let archive = files(File::open(&one)?)?;
        let manifest: Value = serde_json::from_slice(&archive["manifest.json"])?;
        assert_eq!(manifest[0]["RepoTags"][0], "example.org/program:1");
        let layer = &archive[manifest[0]["Layers"][0].as_str().unwrap_or_default()];
        let configuration = &archive[manifest[0]["Config"].as_str().unwrap_or_default()];
        let configuration: Value = serde_json::from_slice(configuration)?;
        assert_eq!(
            configuration["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(layer))
        );
        assert_eq!(files(layer.as_slice())?["program"], b"code");
        assert_eq!(
            digest(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        Ok(())
    }
}
