//! What a container runtime says and hears: CNI specification 1.1.0.

mod config;
mod result;

use std::path::PathBuf;

pub use config::{DEFAULT_STATE, NetworkConfig};
pub use result::{Dns, Interface, Ip, ResultRoute, Success};

use crate::error::{CniError, Code};

/// Versions of the specification that are spoken, older first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", LATEST];

/// The newest of them.
pub const LATEST: &str = "1.1.0";

/// Longest identifier of a container that is taken: it becomes part of a file's name.
const CONTAINER_BYTES: usize = 200;

/// Longest name of a network device (`IFNAMSIZ` less the final zero).
const DEVICE_BYTES: usize = 15;

/// A variable of the environment.
pub type Variable<'v> = dyn Fn(&str) -> Option<String> + 'v;

/// The version that a configuration asks for.
#[must_use]
pub fn version_of(input: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(input).ok()?;
    let version = value.get("cniVersion")?.as_str()?;
    Some(version.to_owned())
}

/// A pod, from the arguments that a kubelet's runtime gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
}

/// Which device of which container a call is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl AttachmentKey {
    /// From the environment.
    pub fn read(variable: &Variable<'_>) -> Result<Self, CniError> {
        let container = required(variable, "CNI_CONTAINERID")?;
        let interface = required(variable, "CNI_IFNAME")?;
        Self::checked(container, interface)
            .map_err(|problem| CniError::new(Code::InvalidEnvironment, problem, ""))
    }

    /// Refuses what a runtime must not give (section "Parameters").
    pub fn checked(container: String, interface: String) -> Result<Self, String> {
        let letters = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let begins = |c: char| c.is_ascii_alphanumeric();
        if !container.starts_with(begins)
            || !container.chars().all(letters)
            || container.len() > CONTAINER_BYTES
        {
            return Err(format!(
                "CNI_CONTAINERID = {container:?}: must begin with a letter or digit, have letters, \
                 digits, dots, dashes and underscores only, and at most {CONTAINER_BYTES} of them"
            ));
        }
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let dots = interface == "." || interface == "..";
        if interface.len() > DEVICE_BYTES || dots || interface.chars().any(bad) {
            return Err(format!(
                "CNI_IFNAME = {interface:?}: is no name of a network device (at most {DEVICE_BYTES} \
                 letters, without slashes, colons and spaces)"
            ));
        }
        Ok(Self {
            container,
            interface,
        })
    }
}

/// `CNI_NETNS`; none: not given, or empty.
#[must_use]
pub fn sandbox(variable: &Variable<'_>) -> Option<PathBuf> {
    variable("CNI_NETNS")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// A variable that must be there.
pub fn required(variable: &Variable<'_>, name: &str) -> Result<String, CniError> {
    variable(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| {
            let details = "this program is called by a container runtime, as the CNI specification \
                           says";
            CniError::new(
                Code::InvalidEnvironment,
                format!("the variable {name} is not set"),
                details,
            )
        })
}

/// The pod's name in `CNI_ARGS` (`KEY=value;KEY=value`); what else is there is for others.
#[must_use]
pub fn pod_name(variable: &Variable<'_>) -> Option<PodName> {
    let text = variable("CNI_ARGS")?;
    let find = |wanted: &str| {
        text.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == wanted && !value.is_empty()).then(|| value.to_owned())
        })
    };
    Some(PodName {
        namespace: find("K8S_POD_NAMESPACE")?,
        name: find("K8S_POD_NAME")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_checked_and_the_variable_is_named() {
        for (container, interface, named) in [
            ("a-b.c_9", "eth0", None),
            ("", "eth0", Some("CNI_CONTAINERID is not set")),
            ("-a", "eth0", Some("CNI_CONTAINERID = \"-a\"")),
            ("a/b", "eth0", Some("CNI_CONTAINERID = \"a/b\"")),
            ("a", "", Some("CNI_IFNAME is not set")),
            (
                "a",
                "0123456789abcdef",
                Some("CNI_IFNAME = \"0123456789abcdef\""),
            ),
            ("a", "..", Some("CNI_IFNAME = \"..\"")),
            ("a", "e:0", Some("CNI_IFNAME = \"e:0\"")),
        ] {
            let variable = |name: &str| {
                Some(match name {
                    "CNI_CONTAINERID" => container.to_owned(),
                    _ => interface.to_owned(),
                })
            };
            match (AttachmentKey::read(&variable), named) {
                (Ok(_), None) => {}
                (Err(error), Some(named)) => {
                    assert!(error.message.contains(named), "{error}");
                    assert_eq!(error.code.number(), 4);
                }
                (result, _) => panic!("{container:?} {interface:?}: {result:?}"),
            }
        }
    }

    #[test]
    fn the_pod_is_found_among_other_arguments() {
        let arguments = |text: &'static str| move |_: &str| Some(text.to_owned());
        let found = pod_name(&arguments(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c",
        ));
        assert_eq!(
            found,
            Some(PodName {
                namespace: "a".to_owned(),
                name: "b".to_owned()
            })
        );
        assert_eq!(pod_name(&arguments("K8S_POD_NAME=b")), None);
    }
}
