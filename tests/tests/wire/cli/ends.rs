//! Every documented exit code, and commands that need no daemon.

use std::{fs, path::PathBuf, process::Command, sync::Arc};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::cluster::binary;

use super::{Node, Shown};
use crate::worlds::Worlds;

pub(super) fn trials(worlds: &Arc<Worlds>) -> Vec<Trial> {
    let worlds = Arc::clone(worlds);
    vec![
        Trial::test("cli/exit-codes", move || {
            let cluster = worlds.serving("tc")?;
            Ok(codes(Node::new(cluster, 1))?)
        }),
        Trial::test("cli/exit-codes-without-daemon", || Ok(without_daemon()?)),
        Trial::test("cli/check", || Ok(check()?)),
        Trial::test("cli/completions-and-manual", || Ok(pages()?)),
    ]
}

/// With a daemon.
fn codes(node: Node<'_>) -> Result<()> {
    node.text(&["service", "list"])?;
    let usage: [(&[&str], &str); 8] = [
        (&["service"], "Usage: causeway service"),
        (&["service", "get"], "<NAME>"),
        (&["no-such-command"], "no-such-command"),
        (&["status", "-o", "xml"], "xml"),
        (
            &["explain", "gre", "192.0.2.1", "192.0.2.2:1"],
            "write tcp, udp, sctp or icmp",
        ),
        (
            &["explain", "tcp", "192.0.2.1", "192.0.2.2"],
            "write an address and port",
        ),
        (&["explain", "icmp", "192.0.2.1", "192.0.2.2:1"], "no ports"),
        (
            &[
                "explain",
                "tcp",
                "198.51.100.10",
                "192.0.2.2:1",
                "--device",
                "eth9",
            ],
            "no device of this name",
        ),
    ];
    for (arguments, word) in usage {
        node.fails(arguments, 2, word)?;
    }
    let missing: [(&[&str], &str); 8] = [
        (&["service", "get", "nobody"], "no service \"nobody\""),
        (&["backend", "get", "192.0.2.99"], "no backend"),
        (&["flow", "get", "192.0.2.99"], "no connection"),
        (&["route", "get", "192.0.2.99"], "no backend at"),
        (
            &["drop", "get", "no-reason"],
            "`causeway drop list` names all",
        ),
        (&["map", "dump", "NOTHING"], "`causeway map list` names all"),
        (&["map", "get", "SETTINGS", "7"], "no record"),
        (&["map", "get", "NOTHING", "7", "--raw"], "no map"),
    ];
    for (arguments, word) in missing {
        node.fails(arguments, 3, word)?;
    }
    Ok(())
}

fn run(arguments: &[&str]) -> Result<Shown> {
    Shown::of(Command::new(binary()?).args(arguments).output()?)
}

fn ends(arguments: &[&str], code: i32, word: &str) -> Result<Shown> {
    let shown = run(arguments)?;
    ensure!(
        shown.code == Some(code) && (shown.stderr.contains(word) || shown.stdout.contains(word)),
        "`causeway {}` must end with {code} and say {word:?}: {shown:?}",
        arguments.join(" ")
    );
    Ok(shown)
}

/// An instance that is nowhere.
const NOBODY: [&str; 4] = [
    "--instance",
    "nobody",
    "--socket",
    "/nonexistent/nobody.sock",
];

fn without_daemon() -> Result<()> {
    let noun = |noun, verb| [&NOBODY[..], &[noun, verb]].concat();
    for arguments in ["service", "backend", "flow", "route", "drop", "map"] {
        ends(&noun(arguments, "list"), 5, "\"nobody\" isn't running")?;
    }
    ends(&[&NOBODY[..], &["status"]].concat(), 5, "no daemon answers")?;
    let explain = ["explain", "tcp", "192.0.2.1", "192.0.2.2:1"];
    ends(&[&NOBODY[..], &explain].concat(), 5, "isn't running")?;
    ends(&["--help"], 0, "5  the daemon isn't running")?;
    ends(&["--version"], 0, "causeway ")?;
    let folder = Folder::new("codes")?;
    let wrong = folder.file("wrong.toml", "version = 2\n")?;
    ends(&["run", "--config", &wrong], 4, "wrong.toml")?;
    ends(&["run", "--config", "/nonexistent.toml"], 3, "cannot read")?;
    Ok(())
}

fn check() -> Result<()> {
    let folder = Folder::new("check")?;
    let good = folder.file(
        "good.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n",
    )?;
    ends(
        &["check", &good],
        0,
        "1 object in 1 file: 0 errors, 0 warnings",
    )?;
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\n\
               spec:\n  clusterIP: 10.96.0.300\n  ports: [{port: 80}]\n";
    let bad = folder.file("bad.yaml", bad)?;
    let shown = ends(&["check", &bad], 4, "bad.yaml:5: error: ")?;
    ensure!(shown.stderr.is_empty(), "{shown:?}");
    let told = ends(&["check", &bad, "-o", "json"], 4, "\"severity\": \"error\"")?;
    let told: serde_json::Value = serde_json::from_str(&told.stdout)?;
    ensure!(
        told.pointer("/counts/errors") == Some(&1.into()),
        "{told:#}"
    );
    ends(&["check", "/nonexistent"], 3, "/nonexistent")?;
    ends(&["check", "/nonexistent.toml"], 3, "cannot read")?;
    let config = folder.file("bad.toml", "version = 1\n[nat]\nports = \"many\"\n")?;
    ends(&["check", &config], 4, "bad.toml:")?;
    let unknown = "apiVersion: example.com/v1\nkind: Wheel\nmetadata: {name: a}\n";
    let unknown = folder.file("unknown.yaml", unknown)?;
    ends(&["check", &unknown], 0, "Wheel")?;
    Ok(())
}

fn pages() -> Result<()> {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let shown = ends(&["completions", shell], 0, "explain")?;
        ensure!(shown.stderr.is_empty(), "{shown:?}");
    }
    ends(&["completions", "dos"], 2, "dos")?;
    ends(&["man"], 0, ".TH causeway 1")?;
    let folder = Folder::new("man")?;
    ends(&["man", "--directory", &folder.0.to_string_lossy()], 0, "")?;
    let page = fs::read_to_string(folder.0.join("causeway-explain.1"))?;
    ensure!(page.contains("icmp"), "{page}");
    // A script that its shell reads without complaint.
    let script = run(&["completions", "bash"])?.stdout;
    let script = folder.file("causeway.bash", &script)?;
    let read = Command::new("bash").args(["-n", &script]).output()?;
    ensure!(read.status.success() && read.stderr.is_empty(), "{read:?}");
    Ok(())
}

/// A folder, removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("causeway-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
