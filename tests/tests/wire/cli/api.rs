//! The API as any HTTP client sees it.

use std::{process::Command, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use proxy_tests::lab::cluster::Cluster;
use proxy_user::telemetry::metrics::METRICS;
use serde_json::Value;

use crate::worlds::Worlds;

type Check = fn(&Cluster) -> Result<()>;

pub(super) fn trials(worlds: &Arc<Worlds>) -> Vec<Trial> {
    let checks: [(&str, Check); 3] = [
        ("cli/api-answers", answers),
        ("cli/api-errors", errors),
        ("cli/api-metrics", metrics),
    ];
    let trial = |(name, check): (&str, Check)| {
        let worlds = Arc::clone(worlds);
        Trial::test(name, move || Ok(check(worlds.serving("tc")?)?))
    };
    checks.into_iter().map(trial).collect()
}

/// Asks with curl: the status code and the body.
fn ask(cluster: &Cluster, method: &str, path: &str) -> Result<(u16, String)> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10"])
        .args(["--request", method, "--write-out", "\n%{http_code}"])
        .arg("--unix-socket")
        .arg(cluster.daemon(1)?.socket())
        .arg(format!("http://causeway{path}"));
    let output = curl.output().context("running curl")?;
    let text = String::from_utf8(output.stdout)?;
    let (body, code) = text.rsplit_once('\n').context(text.clone())?;
    Ok((code.parse()?, body.to_owned()))
}

fn answers(cluster: &Cluster) -> Result<()> {
    let paths = [
        "/v1/services",
        "/v1/services?of=near",
        "/v1/backends",
        "/v1/flows",
        "/v1/routes",
        "/v1/drops?of=no-endpoint",
        "/v1/maps",
        "/v1/maps/SETTINGS",
        "/v1/maps/SETTINGS?key=0",
    ];
    for path in paths {
        let (code, body) = ask(cluster, "GET", path)?;
        let value: Value =
            serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))?;
        ensure!(code == 200 && value.is_array(), "{path}: {code} {body}");
    }
    let explain = "/v1/explain?protocol=icmp&source=198.51.100.10&destination=203.0.113.10";
    for path in ["/v1/status", explain] {
        let (code, body) = ask(cluster, "GET", path)?;
        let value: Value = serde_json::from_str(&body)?;
        ensure!(code == 200 && value.is_object(), "{path}: {code} {body}");
    }
    Ok(())
}

fn errors(cluster: &Cluster) -> Result<()> {
    let rows = [
        ("GET", "/v1/nothing", 404, "/v1/nothing"),
        ("GET", "/", 404, "docs/reference/api.md"),
        ("GET", "/v1/services?of=nobody", 404, "nobody"),
        ("GET", "/v1/maps/NOTHING", 404, "NOTHING"),
        ("GET", "/v1/maps/SETTINGS?key=7", 404, "7"),
        ("GET", "/v1/explain", 400, "protocol"),
        (
            "GET",
            "/v1/explain?protocol=gre&source=1&destination=2",
            400,
            "gre",
        ),
        ("POST", "/v1/status", 405, "GET"),
        ("DELETE", "/v1/flows", 405, "GET"),
    ];
    for (method, path, expected, word) in rows {
        let (code, body) = ask(cluster, method, path)?;
        let value: Value =
            serde_json::from_str(&body).with_context(|| format!("{path}: {body}"))?;
        let error = value
            .get("error")
            .and_then(Value::as_str)
            .unwrap_or_default();
        ensure!(
            code == expected && error.contains(word),
            "{method} {path} must be {expected} and say {word:?}: {code} {body}"
        );
    }
    Ok(())
}

fn metrics(cluster: &Cluster) -> Result<()> {
    let (code, body) = ask(cluster, "GET", "/metrics")?;
    ensure!(code == 200, "{code}: {body}");
    for metric in METRICS {
        let head = format!("# TYPE {} ", metric.name);
        ensure!(
            body.lines().any(|line| line.starts_with(&head)),
            "no {head}: {body}"
        );
    }
    let row = "causeway_dropped_packets_total{reason=\"no-endpoint\"} ";
    ensure!(
        body.lines().any(|line| line.starts_with(row)),
        "no {row}: {body}"
    );
    Ok(())
}
