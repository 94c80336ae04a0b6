//! A CycleCloud-style cluster template: which node is the return proxy, and with which key.
//!
//! Sections are `[cluster NAME]`, `[[node NAME]]`, `[[nodearray NAME]]`, and deeper ones; `[[node
//! defaults]]` holds what nodes have that do not say otherwise. Only three keys are read here:
//! `IsReturnProxy`, `KeyPairLocation`, `ReturnProxyAddress`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::object::{Address, ReturnProxy, Selection};
use super::trust::Policy;

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A line that is neither a section nor a setting.
    #[error("line {line}: {text:?} is neither `[section]` nor `Key = Value`")]
    Line {
        /// The line, from 1 on.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A value that cannot be.
    #[error("line {line}: {key} = {value}: write {remedy}")]
    Value {
        /// The line, from 1 on.
        line: usize,
        /// The key.
        key: &'static str,
        /// What was found.
        value: String,
        /// What to write.
        remedy: &'static str,
    },
    /// A return proxy without a key.
    #[error("node {node} is a return proxy and has no KeyPairLocation")]
    NoKey {
        /// The node.
        node: String,
    },
    /// Two return proxies with different keys or addresses.
    #[error("nodes {} have IsReturnProxy = true: exactly one may", nodes.join(", "))]
    Several {
        /// Their names.
        nodes: Vec<String>,
    },
    /// A set of nodes cannot be one node.
    #[error("nodearray {node} has IsReturnProxy = true: only one single node may have")]
    Array {
        /// Its name.
        node: String,
    },
}

#[derive(Clone, Debug, Default)]
struct Node {
    is_array: bool,
    proxy: Option<bool>,
    key: Option<String>,
    address: Option<Address>,
}

/// Reads a template; none: no node in it is a return proxy.
pub fn read(text: &str, trust: Policy) -> Result<Option<ReturnProxy>, TemplateError> {
    let (cluster, mut nodes) = sections(text)?;
    let defaults = nodes.remove("defaults").unwrap_or_default();
    let is_proxy = |node: &Node| node.proxy.or(defaults.proxy).unwrap_or(false);
    let mut proxies = nodes.iter().filter(|(_, node)| is_proxy(node));
    let Some((name, node)) = proxies.next() else {
        return Ok(None);
    };
    let more: Vec<String> = proxies.map(|(name, _)| name.clone()).collect();
    if !more.is_empty() {
        let nodes = [vec![name.clone()], more].concat();
        return Err(TemplateError::Several { nodes });
    }
    if node.is_array {
        return Err(TemplateError::Array { node: name.clone() });
    }
    let Some(key) = node.key.as_ref().or(defaults.key.as_ref()) else {
        return Err(TemplateError::NoKey { node: name.clone() });
    };
    let selection = Selection::Names(vec![name.clone()]);
    let name = cluster.unwrap_or_else(|| "cluster".to_owned());
    let mut proxy = ReturnProxy::new(&name, selection, home(key), trust);
    proxy.address = node.address.or(defaults.address).unwrap_or_default();
    Ok(Some(proxy))
}

/// A leading `~` is the home of whoever runs this.
fn home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

type Nodes = BTreeMap<String, Node>;

fn sections(text: &str) -> Result<(Option<String>, Nodes), TemplateError> {
    let mut cluster = None;
    let mut nodes = Nodes::new();
    // The node whose settings follow; those of deeper sections are not the node's.
    let mut current: Option<String> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        let bad = || TemplateError::Line {
            line: number,
            text: line.to_owned(),
        };
        if line.starts_with('[') {
            let depth = line.chars().take_while(|c| *c == '[').count();
            let inner = line.trim_matches(['[', ']']).trim();
            let closing = line.chars().rev().take_while(|c| *c == ']').count();
            if inner.is_empty() || depth != closing {
                return Err(bad());
            }
            let (kind, name) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
            let name = name.trim().to_owned();
            current = None;
            match (depth, kind) {
                (1, "cluster") => cluster = Some(name),
                (2, "node" | "nodearray") => {
                    nodes.entry(name.clone()).or_default().is_array = kind == "nodearray";
                    current = Some(name);
                }
                _ => {}
            }
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        if let Some(node) = current.as_ref().and_then(|name| nodes.get_mut(name)) {
            set(node, number, key.trim(), value.trim())?;
        }
    }
    Ok((cluster, nodes))
}

fn set(node: &mut Node, line: usize, key: &str, value: &str) -> Result<(), TemplateError> {
    let wrong = |key, remedy| {
        Err(TemplateError::Value {
            line,
            key,
            value: value.to_owned(),
            remedy,
        })
    };
    if key.eq_ignore_ascii_case("IsReturnProxy") {
        node.proxy = match value.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => return wrong("IsReturnProxy", "true or false"),
        };
    } else if key.eq_ignore_ascii_case("ReturnProxyAddress") {
        node.address = match value.to_ascii_lowercase().as_str() {
            "private" => Some(Address::Private),
            "public" => Some(Address::Public),
            _ => return wrong("ReturnProxyAddress", "private or public"),
        };
    } else if key.eq_ignore_ascii_case("KeyPairLocation") {
        if value.is_empty() {
            return wrong("KeyPairLocation", "the path of the private key");
        }
        node.key = Some(value.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust() -> Policy {
        Policy::Known("/h".into())
    }

    const TEMPLATE: &str = "
# A cluster behind a firewall.
[cluster lab]
FormLayout = selectionpanel
  [[node defaults]]
  KeyPairLocation = /keys/lab.pem
  SubnetId = x/y/z

  [[node proxy]]
  IsReturnProxy = true
  ReturnProxyAddress = public
    [[[configuration]]]
    IsReturnProxy = false

  [[nodearray execute]]
  MaxCoreCount = 100
[parameters Settings]
KeyPairLocation = elsewhere
";

    #[test]
    fn the_one_node_is_found_with_what_it_inherits() {
        let proxy = read(TEMPLATE, trust()).unwrap().unwrap();
        assert_eq!(proxy.name, "lab");
        assert_eq!(proxy.selection, Selection::Names(vec!["proxy".to_owned()]));
        assert_eq!(proxy.key, PathBuf::from("/keys/lab.pem"));
        assert_eq!(proxy.address, Address::Public);
        assert_eq!(proxy.user, "cyclecloud");
    }

    #[test]
    fn without_one_there_is_none() {
        let text = TEMPLATE.replace("IsReturnProxy = true", "IsReturnProxy = false");
        assert_eq!(read(&text, trust()), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        let rows = [
            (
                "[[node a]]\nIsReturnProxy=true\nKeyPairLocation=/k\n[[node b]]\nIsReturnProxy=TRUE\n",
                "nodes a, b have IsReturnProxy = true: exactly one may",
            ),
            (
                "[[node defaults]]\nIsReturnProxy=true\nKeyPairLocation=/k\n[[node a]]\n[[node b]]\n",
                "nodes a, b have IsReturnProxy = true: exactly one may",
            ),
            (
                "[[node a]]\nIsReturnProxy = true\n",
                "node a is a return proxy and has no KeyPairLocation",
            ),
            (
                "[[nodearray a]]\nIsReturnProxy = true\nKeyPairLocation = /k\n",
                "nodearray a has IsReturnProxy = true: only one single node may have",
            ),
            (
                "[[node a]]\nIsReturnProxy = yes\n",
                "line 2: IsReturnProxy = yes: write true or false",
            ),
            (
                "[[node a]]\nReturnProxyAddress = both\n",
                "line 2: ReturnProxyAddress = both: write private or public",
            ),
            (
                "[[node a]\n",
                "line 1: \"[[node a]\" is neither `[section]` nor `Key = Value`",
            ),
            (
                "[[node a]]\nhello\n",
                "line 2: \"hello\" is neither `[section]` nor `Key = Value`",
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(read(text, trust()).unwrap_err().to_string(), expected);
        }
    }
}
