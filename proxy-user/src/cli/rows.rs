//! Rows as tables show them.

use std::{fmt::Display, time::Duration};

use serde::Serialize;

use super::output::Row;
use crate::{
    explain::RouteRow,
    inspect::{BackendRow, DropRow, FlowRow, MapRow, RecordRow, ServiceRow},
    model::Algorithm,
};

/// Several in one cell.
fn join<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn or_dash<T: Display>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// A number of bytes with a unit.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut rest, mut unit) = (count, 0, 0);
    while whole >= 1_024 && unit + 1 < UNITS.len() {
        rest = whole % 1_024 * 10 / 1_024;
        whole /= 1_024;
        unit += 1;
    }
    let unit_name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 {
        format!("{whole}{unit_name}")
    } else {
        format!("{whole}.{rest}{unit_name}")
    }
}

impl Row for ServiceRow {
    const TITLES: &'static [&'static str] = &[
        "SERVICE",
        "CLUSTER",
        "EXTERNAL",
        "ALGORITHM",
        "SERVING",
        "DRAINING",
        "CONNECTIONS",
        "BYTES",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            join(&self.cluster),
            join(&self.external),
            match self.algorithm {
                Algorithm::Random => "random".to_owned(),
                Algorithm::Maglev => "maglev".to_owned(),
            },
            self.serving.to_string(),
            self.draining.to_string(),
            or_dash(self.connections.as_ref()),
            or_dash(self.bytes.map(bytes).as_ref()),
        ]
    }
}

impl Row for BackendRow {
    const TITLES: &'static [&'static str] = &[
        "SERVICE",
        "BACKEND",
        "STATE",
        "SHARE",
        "LIVE",
        "CONNECTIONS",
        "BYTES",
        "INDEX",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.address.to_string(),
            if self.serving { "serving" } else { "draining" }.to_owned(),
            format!("{}.{}%", self.share / 10, self.share % 10),
            or_dash(self.live.as_ref()),
            or_dash(self.connections.as_ref()),
            or_dash(self.bytes.map(bytes).as_ref()),
            format!("{}/{}", self.index, self.generation),
        ]
    }
}

impl Row for FlowRow {
    const TITLES: &'static [&'static str] = &[
        "PROTOCOL", "CLIENT", "FRONTEND", "SEEN AS", "BACKEND", "PHASE", "IDLE", "PACKETS",
        "BYTES", "SERVICE",
    ];

    fn cells(&self) -> Vec<String> {
        // Milliseconds say nothing of a clock that counts quarters of a second.
        let idle = Duration::from_millis(self.idle_ms / 100 * 100);
        vec![
            or_dash(self.protocol.as_ref()),
            self.client.to_string(),
            self.frontend.to_string(),
            if self.seen_as == self.client {
                "=".to_owned()
            } else {
                self.seen_as.to_string()
            },
            self.backend.to_string(),
            self.phase.clone(),
            humantime::format_duration(idle).to_string(),
            format!("{}/{}", self.packets_in, self.packets_out),
            format!("{}/{}", bytes(self.bytes_in), bytes(self.bytes_out)),
            self.service.clone(),
        ]
    }
}

impl Row for DropRow {
    const TITLES: &'static [&'static str] = &["REASON", "KIND", "PACKETS", "BYTES", "MEANING"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.reason.clone(),
            if self.drop { "drop" } else { "event" }.to_owned(),
            self.packets.to_string(),
            bytes(self.bytes),
            self.explanation.clone(),
        ]
    }
}

impl Row for RouteRow {
    const TITLES: &'static [&'static str] = &[
        "DESTINATION",
        "STEP",
        "DEVICE",
        "GATEWAY",
        "LINK ADDRESS",
        "SERVICES",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.destination.to_string(),
            self.step.clone(),
            or_dash(self.device.as_ref()),
            or_dash(self.gateway.as_ref()),
            or_dash(self.link.as_ref()),
            join(&self.services),
        ]
    }
}

impl Row for MapRow {
    const TITLES: &'static [&'static str] =
        &["MAP", "TYPE", "KEY", "VALUE", "USED", "CAPACITY", "PURPOSE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.kind.clone(),
            self.key_bytes.to_string(),
            self.value_bytes.to_string(),
            self.used.to_string(),
            self.capacity.to_string(),
            self.purpose.clone(),
        ]
    }
}

impl Row for RecordRow {
    const TITLES: &'static [&'static str] = &["KEY", "VALUE"];

    fn cells(&self) -> Vec<String> {
        let value = match &self.value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        vec![self.key.clone(), value]
    }
}

/// A record as bytes.
#[derive(Serialize)]
pub(super) struct RawRecord {
    key: String,
    value: Vec<String>,
}

impl From<RecordRow> for RawRecord {
    fn from(record: RecordRow) -> Self {
        Self {
            key: record.raw_key,
            value: record.raw_value,
        }
    }
}

impl Row for RawRecord {
    const TITLES: &'static [&'static str] = &["KEY", "VALUE"];

    fn cells(&self) -> Vec<String> {
        vec![self.key.clone(), self.value.join(" ")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::{Format, Output};

    #[test]
    fn bytes_have_units() {
        let rows = [
            (0, "0B"),
            (1_023, "1023B"),
            (1_536, "1.5KiB"),
            (5 << 30, "5.0GiB"),
        ];
        for (count, text) in rows {
            assert_eq!(bytes(count), text);
        }
    }

    fn service() -> ServiceRow {
        ServiceRow {
            id: 1,
            name: "demo/web:http/TCP".to_owned(),
            protocol: Some(crate::model::Protocol::Tcp),
            cluster: vec![
                "10.96.0.10:80".parse().unwrap(),
                "[fd00:96::10]:80".parse().unwrap(),
            ],
            external: vec![],
            algorithm: Algorithm::Maglev,
            slots: 503,
            serving: 4,
            draining: 1,
            connections: Some(12),
            bytes: None,
        }
    }

    fn print(format: Format) -> String {
        let mut bytes = Vec::new();
        Output::new(format, &mut bytes).list(&[service()]).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_table_of_services() {
        let expected = "\
SERVICE            CLUSTER                         EXTERNAL  ALGORITHM  SERVING  DRAINING  \
CONNECTIONS  BYTES
demo/web:http/TCP  10.96.0.10:80,[fd00:96::10]:80  -         maglev     4        1         \
12           -
";
        assert_eq!(print(Format::Table), expected);
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let json: serde_json::Value = serde_json::from_str(&print(Format::Json)).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(&print(Format::Yaml)).unwrap();
        assert_eq!(json, yaml);
        assert_eq!(json[0]["cluster"][1], "[fd00:96::10]:80");
        assert_eq!(json[0]["algorithm"], "maglev");
        assert_eq!(json[0]["bytes"], serde_json::Value::Null);
    }
}
