//! Putting the CNI plugin on a node, and taking it away.
//!
//! A container runtime reads the folder of configurations at any time, takes the first file by name,
//! and takes the node for ready once there is one. So nothing is ever half there, the plugin comes
//! before its configuration, and somebody else's configuration goes only when ours is there: it is
//! kept beside, under a name that no runtime looks at, and is put back at the end
//! (<https://github.com/containernetworking/cni/blob/main/SPEC.md>; containerd and CRI-O read
//! `.conf`, `.conflist` and `.json`).

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// The plugin's file.
pub const PLUGIN: &str = "causeway-cni";

/// Its configuration's.
const CONFIGURATION: &str = "10-causeway.conflist";

/// What the name of a configuration that was set aside ends with.
const ASIDE: &str = ".before-causeway";

/// Something on the node could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct PluginError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// For `map_err`.
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PluginError + 'a {
    move |source| PluginError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A runtime's folders, as this process sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// Plugins: containerd's `bin_dir`.
    pub plugins: PathBuf,
    /// Configurations: `conf_dir`.
    pub configurations: PathBuf,
}

impl Folders {
    /// Puts the plugin and its configuration there; says what was changed, which is nothing the
    /// second time.
    pub fn install(&self, plugin: &Path, configuration: &str) -> Result<Vec<String>, PluginError> {
        let mut done = Vec::new();
        for folder in [&self.plugins, &self.configurations] {
            fs::create_dir_all(folder).map_err(failed("make", folder))?;
        }
        let code = fs::read(plugin).map_err(failed("read", plugin))?;
        let files = [
            (self.plugins.join(PLUGIN), code.as_slice(), 0o755),
            (self.ours(), configuration.as_bytes(), 0o644),
        ];
        for (path, bytes, mode) in files {
            if fs::read(&path).is_ok_and(|there| there == bytes) {
                continue;
            }
            replace(&path, bytes, mode)?;
            done.push(format!("wrote {}", path.display()));
        }
        for path in self.configurations(is_configuration)? {
            if path != self.ours() {
                let to = with_end(&path, ASIDE);
                fs::rename(&path, &to).map_err(failed("set aside", &path))?;
                done.push(format!("set {} aside as {}", path.display(), to.display()));
            }
        }
        sync(&self.configurations)?;
        Ok(done)
    }

    /// Puts back what was set aside and removes what is ours; says what was changed.
    pub fn remove(&self) -> Result<Vec<String>, PluginError> {
        let mut done = Vec::new();
        for path in self.configurations(|name| name.ends_with(ASIDE))? {
            let name = path.to_string_lossy();
            let to = PathBuf::from(name.trim_end_matches(ASIDE));
            if to.exists() {
                // Somebody has written it anew meanwhile: that is what is meant now.
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                done.push(format!("removed {}", path.display()));
            } else {
                fs::rename(&path, &to).map_err(failed("put back", &path))?;
                done.push(format!("put back {}", to.display()));
            }
        }
        for path in [self.ours(), self.plugins.join(PLUGIN)] {
            match fs::remove_file(&path) {
                Ok(()) => done.push(format!("removed {}", path.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("remove", &path)(error)),
            }
        }
        Ok(done)
    }

    fn ours(&self) -> PathBuf {
        self.configurations.join(CONFIGURATION)
    }

    /// Files of the folder, if it is there, whose names are of a kind.
    fn configurations(&self, kind: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, PluginError> {
        let entries = match fs::read_dir(&self.configurations) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.configurations)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.configurations))?;
            if entry.file_name().to_str().is_some_and(&kind) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

fn is_configuration(name: &str) -> bool {
    let end = Path::new(name)
        .extension()
        .and_then(|extension| extension.to_str());
    end.is_some_and(|end| ["conf", "conflist", "json"].contains(&end))
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Writes a file so that whoever looks sees the old one or the new one, also after a power cut.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PluginError> {
    let draft = with_end(path, ".draft");
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(failed("write", path))?;
    path.parent().map_or(Ok(()), sync)
}

fn sync(folder: &Path) -> Result<(), PluginError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync", folder))
}
