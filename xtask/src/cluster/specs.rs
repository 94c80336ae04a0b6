//! Upstream's end-to-end specs on a cluster of three nodes in three zones: with fewer, some skip
//! themselves.

use std::fs::{self, File};
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::host::Host;
use super::identity::Identities;
use super::layout::Place;
use super::programs::{self, Programs, Use};
use super::{Network, Options};
use crate::{process, workspace};

/// As many as the specs want.
const NODES: u8 = 3;

/// Which specs, and how.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// Regular expression for their names.
    pub(crate) focus: String,
    /// Only those that every cluster has to pass.
    pub(crate) conformance_only: bool,
    /// Names of specs that are left out.
    pub(crate) left_out: Vec<String>,
    /// How many at once.
    pub(crate) procs: u8,
    /// Leave the cluster up.
    pub(crate) keep: bool,
}

/// How a spec ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Well.
    Passed,
    /// Not as it should; why.
    Failed(String),
    /// It skipped itself; why.
    Skipped(String),
}

/// What ran, and every name there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Those that were started, and how they ended.
    pub(crate) ended: Vec<(String, End)>,
    /// All of the suite.
    pub(crate) names: Vec<String>,
}

/// Starts a cluster, runs the specs, takes the cluster down.
pub(crate) fn run(network: Network, choice: &Choice) -> Result<Report> {
    let options = Options {
        network,
        nodes: NODES,
    };
    super::up(options, Use::Specs)?;
    let report = ask(network, choice);
    if choice.keep {
        println!("the cluster is left up: `cargo xtask cluster down` ends it");
    } else {
        super::down()?;
    }
    report
}

fn ask(network: Network, choice: &Choice) -> Result<Report> {
    let programs = Programs::built()?;
    let folder = workspace::target()
        .join("conformance")
        .join(format!("{network:?}").to_lowercase());
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let result = folder.join("report.json");
    if result.exists() {
        fs::remove_file(&result).context("cannot remove the last report")?;
    }
    let log = folder.join("ginkgo.log");
    let mut text =
        File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    println!("running specs; what they say: {}", log.display());
    let mut lost = None;
    let print = |line: &str| {
        if let Err(error) = writeln!(text, "{line}") {
            lost = Some(error);
        }
        if line.starts_with("• [") {
            println!("{line}");
        }
    };
    let mut ginkgo = ginkgo(&programs, choice, &folder)?;
    // It ends with an error if a spec failed; the report says which.
    process::follow(&mut ginkgo, print, process::Shown::Nothing)?;
    if let Some(error) = lost {
        return Err(error).with_context(|| format!("cannot write {}", log.display()));
    }
    let file = File::open(&result)
        .with_context(|| format!("ginkgo wrote no report: see {}", log.display()))?;
    let suites: Vec<Suite> =
        serde_json::from_reader(BufReader::new(file)).context("cannot read ginkgo's report")?;
    read(suites)
}

/// On the control host: specs also ask nodes and pods from where they run.
fn ginkgo(programs: &Programs, choice: &Choice, folder: &Path) -> Result<std::process::Command> {
    let control = Host::running(Place::Control)?;
    let mut command = control.command(programs.path(programs::GINKGO));
    command
        .arg("--no-color")
        .arg(format!("--procs={}", choice.procs))
        .arg("--timeout=4h")
        .arg(format!("--output-dir={}", folder.display()))
        .arg("--json-report=report.json")
        .arg(format!("--focus={}", choice.focus));
    if choice.conformance_only {
        command.arg("--label-filter=Conformance");
    }
    for name in &choice.left_out {
        command.arg(format!("--skip=^{}$", escaped(name)));
    }
    command
        .arg(programs.path(programs::SUITE))
        .arg("--")
        .arg(format!("--kubeconfig={}", Identities::admin()?.display()))
        .arg(format!(
            "--kubectl-path={}",
            kubectl(&control, programs)?.display()
        ))
        .arg("--provider=skeleton")
        .arg("--dump-logs-on-failure=false")
        .arg(format!("--num-nodes={NODES}"))
        .arg(format!("--report-dir={}", folder.display()));
    Ok(command)
}

/// Specs call a program of that name.
fn kubectl(control: &Host, programs: &Programs) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let kubernetes = programs.path(programs::KUBERNETES);
    let script = format!(
        "#!/bin/sh\nexec '{}' kubectl \"$@\"\n",
        kubernetes.display()
    );
    let path = control.write("kubectl", script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .context("cannot make kubectl executable")?;
    Ok(path)
}

/// A regular expression that is just this text.
fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// What ginkgo writes for a suite (`types.Report` of ginkgo 2).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Failure {
    message: String,
}

impl Spec {
    fn name(&self) -> String {
        let mut words = self.container_hierarchy_texts.clone().unwrap_or_default();
        words.push(self.leaf_node_text.clone());
        words.join(" ")
    }

    /// Nothing if it was not chosen.
    fn end(self) -> Option<End> {
        match self.state.as_str() {
            "passed" => Some(End::Passed),
            "pending" => None,
            "skipped" if self.failure.message.is_empty() => None,
            "skipped" => Some(End::Skipped(self.failure.message)),
            _ => Some(End::Failed(self.failure.message)),
        }
    }
}

fn read(suites: Vec<Suite>) -> Result<Report> {
    let mut report = Report::default();
    for spec in suites.into_iter().flat_map(|suite| suite.spec_reports) {
        let name = spec.name();
        if spec.leaf_node_type == "It" {
            report.names.push(name.clone());
            if let Some(end) = spec.end() {
                report.ended.push((name, end));
            }
        } else if let (kind, Some(End::Failed(message))) = (spec.leaf_node_type.clone(), spec.end())
        {
            bail!("the suite itself failed, in its {kind}: {message}");
        }
    }
    report.ended.sort_by(|one, other| one.0.cmp(&other.0));
    report.names.sort();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use serde_json::json;

    use super::{End, escaped, read};

    #[test]
    fn a_report_tells_how_specs_ended() -> Result<()> {
        let spec = |leaf: &str, state: &str, message: &str| {
            json!({
                "ContainerHierarchyTexts": ["[sig-network] Services"],
                "LeafNodeType": "It",
                "LeafNodeText": leaf,
                "State": state,
                "Failure": { "Message": message },
            })
        };
        let setup = json!({
            "ContainerHierarchyTexts": null,
            "LeafNodeType": "SynchronizedBeforeSuite",
            "State": "passed",
        });
        let specs = [
            setup.clone(),
            spec("serve", "passed", ""),
            spec("wait", "timedout", "too long"),
            spec("climb", "skipped", "no cloud"),
            spec("sleep", "skipped", ""),
        ];
        let report = read(serde_json::from_value(json!([{ "SpecReports": specs }]))?)?;
        assert_eq!(report.names.len(), 4);
        let named = |name: &str, end| (format!("[sig-network] Services {name}"), end);
        assert_eq!(
            report.ended,
            [
                named("climb", End::Skipped("no cloud".to_owned())),
                named("serve", End::Passed),
                named("wait", End::Failed("too long".to_owned())),
            ]
        );

        let mut failed = setup;
        failed["State"] = json!("failed");
        failed["Failure"] = json!({ "Message": "no node is ready" });
        let error = read(serde_json::from_value(
            json!([{ "SpecReports": [failed] }]),
        )?)
        .unwrap_err();
        assert!(error.to_string().contains("no node is ready"), "{error}");
        Ok(())
    }

    #[test]
    fn a_name_matches_only_itself() {
        assert_eq!(escaped("[a] b (c.d)"), r"\[a\] b \(c\.d\)");
    }
}
