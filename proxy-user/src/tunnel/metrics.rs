//! Numbers of tunnels for Prometheus, in its text format (version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::client::Status;
use super::counters::ForwardFigures;
use super::service::Report;
use super::supervise::Health;

struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(self.0, "{open}{key}=\"{escaped}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus has no other numbers"
)]
const fn number(value: u64) -> f64 {
    value as f64
}

/// One figure of a forward.
type Figure = (
    &'static str,
    &'static str,
    &'static str,
    fn(&ForwardFigures) -> f64,
);

const FIGURES: &[Figure] = &[
    (
        "connections",
        "gauge",
        "Connections that are carried now.",
        |one| number(one.active),
    ),
    ("connections_total", "counter", "Connections.", |one| {
        number(one.opened)
    }),
    (
        "to_server_bytes_total",
        "counter",
        "Bytes from the cluster to the server.",
        |one| number(one.bytes_to_server),
    ),
    (
        "to_cluster_bytes_total",
        "counter",
        "Bytes from the server to the cluster.",
        |one| number(one.bytes_to_cluster),
    ),
    (
        "window_blocked_seconds_total",
        "counter",
        "Time in which connections had something to send, and their window was used up.",
        |one| number(one.blocked_us) / 1e6,
    ),
];

/// Everything.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut text = Text(String::new());
    tunnels(&mut text, &report.tunnels);
    let mut forwards: Vec<(String, &str, String, &ForwardFigures)> = Vec::new();
    for tunnel in &report.tunnels {
        for one in &tunnel.forwards {
            let port = one.listen.to_string();
            forwards.push((tunnel.name.clone(), "server", port, &one.figures));
        }
    }
    if let Some(endpoint) = &report.endpoint {
        for (port, figures) in &endpoint.forwards {
            forwards.push((String::new(), "node", port.to_string(), figures));
        }
    }
    for (suffix, kind, help, figure) in FIGURES {
        let name = format!("causeway_tunnel_{suffix}");
        text.metric(&name, kind, help);
        for (tunnel, side, port, figures) in &forwards {
            let labels = [("tunnel", tunnel.as_str()), ("side", side), ("port", port)];
            text.sample(&name, &labels, figure(figures));
        }
    }
    let name = "causeway_tunnel_refused_total";
    text.metric(
        name,
        "counter",
        "Connections that were not carried, or not to their end, by reason.",
    );
    for (tunnel, side, port, figures) in &forwards {
        for (reason, count) in &figures.refused {
            let labels = [
                ("tunnel", tunnel.as_str()),
                ("side", side),
                ("port", port),
                ("reason", reason),
            ];
            text.sample(name, &labels, number(*count));
        }
    }
    text.metric(
        "causeway_tunnel_problems",
        "gauge",
        "What keeps tunnels from being there.",
    );
    let problems = u64::try_from(report.problems.len()).unwrap_or(u64::MAX);
    text.sample("causeway_tunnel_problems", &[], number(problems));
    text.0
}

fn tunnels(text: &mut Text, tunnels: &[Status]) {
    let gauge = |text: &mut Text, name: &str, help: &str, of: &dyn Fn(&Status) -> f64| {
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        text.metric(name, kind, help);
        for tunnel in tunnels {
            text.sample(name, &[("tunnel", &tunnel.name)], of(tunnel));
        }
    };
    gauge(
        text,
        "causeway_tunnel_up",
        "1 up, 0.5 degraded, 0 down.",
        &|one| match one.health {
            Health::Up => 1.0,
            Health::Degraded => 0.5,
            Health::Down => 0.0,
        },
    );
    gauge(
        text,
        "causeway_tunnel_dials_total",
        "Sessions that were tried.",
        &|one| number(one.figures.dials),
    );
    gauge(
        text,
        "causeway_tunnel_ready_total",
        "Sessions that came to carry.",
        &|one| number(one.figures.ready),
    );
    gauge(
        text,
        "causeway_tunnel_ready_seconds_total",
        "Time from dial to carrying, of all sessions that came to carry.",
        &|one| number(one.figures.ready_us) / 1e6,
    );
    gauge(
        text,
        "causeway_tunnel_rekeys_total",
        "Key exchanges after a session's first.",
        &|one| number(one.figures.rekeys),
    );
    let name = "causeway_tunnel_sessions_ended_total";
    text.metric(name, "counter", "Sessions that have ended, by cause.");
    for tunnel in tunnels {
        for (cause, count) in &tunnel.figures.ended {
            text.sample(
                name,
                &[("tunnel", &tunnel.name), ("cause", cause)],
                number(*count),
            );
        }
    }
    let name = "causeway_tunnel_round_trip_seconds";
    text.metric(name, "gauge", "The last round trip of each session.");
    for tunnel in tunnels {
        for (leg, session) in tunnel.sessions.iter().enumerate() {
            if let Some(us) = session.round_trip_us {
                let labels = [
                    ("tunnel", tunnel.name.as_str()),
                    ("session", &leg.to_string()),
                ];
                text.sample(name, &labels, f64::from(us) / 1e6);
            }
        }
    }
    let name = "causeway_tunnel_session_state";
    text.metric(name, "gauge", "How each session is: always 1.");
    for tunnel in tunnels {
        let mut states: BTreeMap<usize, &str> = BTreeMap::new();
        for (leg, session) in tunnel.sessions.iter().enumerate() {
            states.insert(leg, session.state.word());
        }
        for (leg, state) in states {
            let labels = [
                ("tunnel", tunnel.name.as_str()),
                ("session", &leg.to_string()),
                ("state", state),
            ];
            text.sample(name, &labels, 1.0);
        }
    }
}
