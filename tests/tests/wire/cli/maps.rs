//! `map list`, `map dump` and `map get`: every map, typed and raw.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_common::abi::{MAPS, MapSpec};
use proxy_tests::lab::{
    cluster::SLOTS,
    layout::{self, Family, Layout},
    manifest::Service,
};
use serde_json::Value;

use super::{Node, field, number, text};

const TITLES: &[&str] = &["MAP", "TYPE", "KEY", "VALUE", "USED", "CAPACITY", "PURPOSE"];
const RECORD: &[&str] = &["KEY", "VALUE"];

/// All formats.
pub(super) fn list(node: Node<'_>) -> Result<()> {
    node.list(&["map", "list"], TITLES)?;
    for map in ["backends", "flows_v6", "counters"] {
        node.list(&["map", "dump", map], RECORD)?;
        node.list(&["map", "dump", map, "--raw"], RECORD)?;
    }
    node.list(&["map", "get", "SETTINGS", "0"], RECORD)?;
    node.list(&["map", "get", "SETTINGS", "0", "--raw"], RECORD)?;
    Ok(())
}

/// The maps of a node on which `near` (10) and `both` (12) are served.
pub(super) fn check(node: Node<'_>) -> Result<()> {
    let rows = node.rows(&["map", "list"])?;
    ensure!(rows.len() == MAPS.len(), "{rows:?}");
    for (spec, row) in MAPS.iter().zip(&rows) {
        let entries = if spec.name == "SLOTS" {
            SLOTS
        } else {
            spec.entries
        };
        ensure!(
            text(row, "name")? == spec.name
                && number(row, "key_bytes")? == u64::try_from(spec.key_bytes)?
                && number(row, "value_bytes")? == u64::try_from(spec.value_bytes)?
                && number(row, "capacity")? == u64::from(entries),
            "{spec:?} is shown as {row}"
        );
        records(node, spec, number(row, "used")?)?;
    }
    services(node)
}

/// Dumps one map, and gets its first record by both of its names.
fn records(node: Node<'_>, spec: &MapSpec, used: u64) -> Result<()> {
    let name = spec.name.to_lowercase();
    let typed = node.rows(&["map", "dump", &name])?;
    let raw = node.rows(&["map", "dump", &name, "--raw"])?;
    ensure!(
        typed.len() == raw.len() && u64::try_from(typed.len())? == used,
        "{name}: {used} used, {} typed, {} raw",
        typed.len(),
        raw.len()
    );
    for row in &raw {
        let key = text(row, "key")?;
        let values = field(row, "value")?.as_array().context("raw values")?;
        let hexadecimal = |text: &str, bytes: usize| {
            text.len() == 2 * bytes && text.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        ensure!(hexadecimal(key, spec.key_bytes), "{name}: {row}");
        let whole = |value: &Value| {
            value
                .as_str()
                .is_some_and(|value| hexadecimal(value, spec.value_bytes))
        };
        ensure!(
            !values.is_empty() && values.iter().all(whole),
            "{name}: {row}"
        );
    }
    let (Some(first), Some(bytes)) = (typed.first(), raw.first()) else {
        return Ok(());
    };
    // Counters of flows may move; what a record is called does not.
    let key = text(first, "key")?;
    let found = node.rows(&["map", "get", spec.name, key])?;
    ensure!(
        found.len() == 1 && text(found.first().context("no row")?, "key")? == key,
        "{name} {key}: {found:?}"
    );
    let key = text(bytes, "key")?;
    let found = node.rows(&["map", "get", spec.name, &format!("0x{key}"), "--raw"])?;
    ensure!(
        found.len() == 1 && text(found.first().context("no row")?, "key")? == key,
        "{name} {key}: {found:?}"
    );
    Ok(())
}

/// A service by its address, its slots, its backend: what the datapath reads, read as it does.
fn services(node: Node<'_>) -> Result<()> {
    let one = |map: &str, key: &str| -> Result<Value> {
        let rows = node.rows(&["map", "get", map, key])?;
        Ok(field(rows.first().context("no row")?, "value")?.clone())
    };
    for (family, suffix) in Family::BOTH.into_iter().zip(["V4", "V6"]) {
        let address = layout::load_balancer(10, family);
        let key = format!("{}/TCP", SocketAddr::new(address, Service::port(HTTP)));
        let service = one(&format!("SERVICES_{suffix}"), &key)?;
        ensure!(
            number(&service, "slots")? == 1 && super::holds(field(&service, "flags")?, "external"),
            "{key}: {service}"
        );
        let name = one("OBJECTS", &number(&service, "id")?.to_string())?;
        ensure!(name == "default/near:http/TCP", "{key}: {name}");
        let index = one("SLOTS", &number(&service, "first_slot")?.to_string())
            // A slot that holds zero is not shown, and is backend 0.
            .unwrap_or_else(|_| 0.into());
        let backend = one("BACKENDS", &index.to_string())?;
        let pod = SocketAddr::new(
            Layout::STANDARD.pod(1, family),
            proxy_tests::lab::answer::HTTP_PORT,
        );
        ensure!(
            text(&backend, "address")? == pod.to_string(),
            "{key}: {backend}"
        );
        let flags = one(&format!("ADDRESSES_{suffix}"), &address.to_string())?;
        ensure!(super::holds(&flags, "external"), "{address}: {flags}");
    }
    Ok(())
}

const HTTP: proxy_tests::lab::ask::Means = proxy_tests::lab::ask::Means::Http;
