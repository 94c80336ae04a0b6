//! Tables that are made from the code.

use std::{any::type_name, env, fmt::Write as _, fs};

use proxy_common::{
    abi::{ABI_VERSION, MAPS},
    datapath::{Event, Reason},
};

use super::{file, first_column, read, source};
use crate::{
    dataplane::{Maps, table::Table},
    inspect::kind_word,
    telemetry::metrics::METRICS,
};

/// Holds the part of a page between `<!-- made: NAME -->` and `<!-- end -->` to `text`.
fn hold(page: &str, name: &str, text: &str) {
    let old = read(page);
    let begin = format!("<!-- made: {name} -->\n");
    let parts = old.split_once(&begin).and_then(|(before, rest)| {
        let (now, after) = rest.split_once("<!-- end -->")?;
        Some((before, now, after))
    });
    let (before, now, after) = parts.unwrap_or_else(|| panic!("{page} has no part {name}"));
    if now == text {
        return;
    }
    assert!(
        env::var_os("UPDATE_DOCS").is_some(),
        "{page}, part {name}, is not what the code says; write it anew with\n\
         UPDATE_DOCS=1 cargo test --package proxy-user --lib documents\n{text}"
    );
    fs::write(
        file(page),
        format!("{before}{begin}{text}<!-- end -->{after}"),
    )
    .unwrap();
}

fn table(titles: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace("||", "\\|\\|"));
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    let mut text = line(&titles) + &"|---".repeat(titles.len()) + "|\n";
    for row in rows {
        text += &line(&row);
    }
    text
}

fn code(text: impl std::fmt::Display) -> String {
    format!("`{text}`")
}

#[test]
fn the_page_of_reasons_is_complete() {
    const PAGE: &str = "docs/reference/reasons.md";
    let titles = ["reason", "number", "means"];
    let row = |word: &str, number: u32, told: &str| {
        vec![code(word), number.to_string(), told.trim().to_owned()]
    };
    let reasons = Reason::ALL
        .iter()
        .map(|reason| row(reason.word(), *reason as u32, reason.explanation()));
    let events = Event::ALL
        .iter()
        .map(|event| row(event.word(), *event as u32, event.explanation()));
    hold(PAGE, "reasons", &table(&titles, reasons));
    hold(
        PAGE,
        "events",
        &table(&["event", "number", "means"], events),
    );
    let words = Reason::ALL.iter().map(|reason| reason.word());
    let words: Vec<&str> = words
        .chain(Event::ALL.iter().map(|event| event.word()))
        .collect();
    for word in first_column(&read(PAGE)) {
        assert!(
            words.contains(&word.as_str()),
            "{PAGE} names {word}, which is no reason"
        );
    }
}

#[test]
fn the_page_of_metrics_is_complete() {
    let row = |metric: &crate::telemetry::metrics::Metric| {
        let kind = metric.kind.word();
        vec![code(metric.name), kind.to_owned(), metric.help.to_owned()]
    };
    let rows = METRICS.iter().map(row);
    hold(
        "docs/reference/metrics.md",
        "metrics",
        &table(&["name", "kind", "says"], rows),
    );
}

/// The names of the records of a map, as its table in the daemon has them.
fn records<K, V>(_: fn(&Maps) -> &Table<K, V>) -> [String; 2] {
    [short(type_name::<K>()), short(type_name::<V>())]
}

/// A type's name without paths.
fn short(name: &str) -> String {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut text = String::new();
    let mut word = String::new();
    for c in name.chars().chain(['\0']) {
        if is_name(c) {
            word.push(c);
            continue;
        }
        text += word.rsplit("::").next().unwrap_or_default();
        word.clear();
        text.extend((c != '\0').then_some(c));
    }
    text
}

fn records_of(map: &str) -> [String; 2] {
    match map {
        "SETTINGS" => records(|maps| &maps.settings),
        "OBJECTS" => records(|maps| &maps.objects),
        "BACKENDS" => records(|maps| &maps.backends),
        "SLOTS" => records(|maps| &maps.slots),
        "FILTER" => records(|maps| &maps.filter),
        "SOURCES_V4" => records(|maps| &maps.sources_v4),
        "SOURCES_V6" => records(|maps| &maps.sources_v6),
        "SERVICES_V4" => records(|maps| &maps.services_v4),
        "SERVICES_V6" => records(|maps| &maps.services_v6),
        "ADDRESSES_V4" => records(|maps| &maps.addresses_v4),
        "ADDRESSES_V6" => records(|maps| &maps.addresses_v6),
        "DEVICES" => records(|maps| &maps.devices),
        "TX_PORTS" => records(|maps| &maps.tx_ports),
        "FLOWS_V4" => records(|maps| &maps.flows_v4),
        "FLOWS_V6" => records(|maps| &maps.flows_v6),
        "AFFINITY_V4" => records(|maps| &maps.affinity_v4),
        "PEERS_V4" => records(|maps| &maps.peers_v4),
        "PEERS_V6" => records(|maps| &maps.peers_v6),
        "AFFINITY_V6" => records(|maps| &maps.affinity_v6),
        "COUNTERS" => ["u32", "Counter"].map(str::to_owned),
        other => panic!("say which records the map {other} has, here"),
    }
}

/// Where records, their bits and their numbers are declared.
const FILES: [&str; 7] = [
    "abi",
    "abi/settings",
    "abi/frontend",
    "abi/device",
    "abi/flow",
    "abi/client",
    "abi/peer",
];
const RECORDS: [(&str, usize); 14] = [
    ("Settings", 1),
    ("SourceKey", 5),
    ("ServiceKey", 2),
    ("Service", 2),
    ("Backend", 2),
    ("DeviceKey", 3),
    ("Device", 3),
    ("FlowKey", 4),
    ("Flow", 4),
    ("AffinityKey", 5),
    ("Affinity", 5),
    ("PeerKey", 6),
    ("Peer", 6),
    ("Counter", 0),
];
const NUMBERS: [(&str, usize); 7] = [
    ("service_flag", 2),
    ("address_flag", 2),
    ("backend_flag", 2),
    ("DeviceRole", 3),
    ("device_flag", 3),
    ("flow_state", 4),
    ("FlowStep", 4),
];

/// Bytes of a field, of IPv4 and of IPv6.
fn bytes(kind: &str) -> [usize; 2] {
    let same = |bytes| [bytes, bytes];
    match kind {
        "u8" => same(1),
        "u16" | "Be16" | "[u8; 2]" => same(2),
        "u32" | "Addr4" => same(4),
        "MacAddr" => same(6),
        "u64" | "[u32; 2]" => same(8),
        "Addr6" | "[u16; 8]" => same(16),
        "F::Addr" => [4, 16],
        "[u8; 3]" => same(3),
        other => panic!("say how large {other} is, here"),
    }
}

/// The sections of all records, and the sizes that the fields add up to.
fn record_sections(sources: &[source::File]) -> (String, Vec<(String, usize)>) {
    let (mut text, mut sizes) = (String::new(), Vec::new());
    for (record, at) in RECORDS {
        let fields = sources[at].fields(record);
        let generic = fields.iter().any(|field| field.kind == "F::Addr");
        let mut offset = [0, 0];
        let rows = fields.iter().map(|field| {
            let [v4, v6] = offset;
            let [more_v4, more_v6] = bytes(&field.kind);
            offset = [v4 + more_v4, v6 + more_v6];
            let at = if v4 == v6 {
                v4.to_string()
            } else {
                format!("{v4}, {v6}")
            };
            let kind = field.kind.replace("F::Addr", "address");
            vec![at, code(&field.name), kind, field.told.clone()]
        });
        let table = table(&["offset", "field", "type", "means"], rows);
        let told = sources[at].told(record);
        let _ = write!(text, "\n### {record}\n{told}\n\n{table}");
        let [v4, v6] = offset;
        if generic {
            sizes.push((format!("{record}<V4>"), v4));
            sizes.push((format!("{record}<V6>"), v6));
        } else {
            sizes.push((record.to_owned(), v4));
        }
    }
    (text, sizes)
}

#[test]
fn the_page_of_maps_is_complete() {
    const PAGE: &str = "docs/reference/maps.md";
    let open = |name: &&str| source::File::read(&format!("proxy-common/src/{name}.rs"));
    let sources: Vec<source::File> = FILES.iter().map(open).collect();
    let (mut text, mut sizes) = record_sections(&sources);
    let small = [("u32", 4), ("u64", 8), ("Addr4", 4), ("Addr6", 16)];
    let small = small
        .into_iter()
        .chain([("AddressFlags", 4), ("[u32; 2]", 8), ("[u8; 200]", 200)]);
    sizes.extend(small.map(|(name, size)| (name.to_owned(), size)));
    let line = |spec: &proxy_common::abi::MapSpec| {
        let bytes = [spec.key_bytes, spec.value_bytes];
        let named = records_of(spec.name).into_iter().zip(bytes);
        let [key, value] = <[String; 2]>::try_from(
            named
                .map(|(record, size)| {
                    assert!(
                        sizes.contains(&(record.clone(), size)),
                        "{}: the fields of {record} do not add up to {size} bytes",
                        spec.name
                    );
                    format!("`{record}`, {size}")
                })
                .collect::<Vec<_>>(),
        )
        .unwrap();
        vec![
            code(spec.name),
            kind_word(spec.kind).to_owned(),
            key,
            value,
            spec.entries.to_string(),
            spec.purpose.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = MAPS.iter().map(line).collect();
    let titles = [
        "map",
        "kind",
        "key, bytes",
        "value, bytes",
        "entries",
        "holds; who writes",
    ];
    let version = format!("`ABI_VERSION` is {ABI_VERSION}.\n\n");
    hold(PAGE, "maps", &(version + &table(&titles, rows)));
    for (name, at) in NUMBERS {
        let rows = sources[at].numbers(name).into_iter().map(|number| {
            let value = number.kind.replace("1 << ", "bit ");
            vec![value, code(number.name), number.told]
        });
        let told = sources[at].told(name);
        let table = table(&["value", "name", "means"], rows);
        let _ = write!(text, "\n### {name}\n{told}\n\n{table}");
    }
    hold(PAGE, "records", &text);
}
