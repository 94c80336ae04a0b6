use std::collections::BTreeMap;

use anyhow::Result;

use super::{Ended, Row, exceptions, merge, page, read};
use crate::cluster::{End, Network, SpecReport};

fn row(spec: &str, reference: Option<Ended>, causeway: Option<Ended>, reason: &str) -> Row {
    Row {
        spec: spec.to_owned(),
        reference,
        causeway,
        reason: reason.to_owned(),
    }
}

#[test]
fn what_was_tried_takes_the_place_of_what_was_known() {
    let mut rows = vec![
        row("a", Some(Ended::Passed), Some(Ended::Failed), "broken"),
        row(
            "b",
            Some(Ended::Failed),
            Some(Ended::Failed),
            "no such socket",
        ),
        row("c", Some(Ended::Passed), Some(Ended::Passed), ""),
        row("gone", Some(Ended::Passed), Some(Ended::Passed), ""),
    ];
    let report = SpecReport {
        ended: vec![
            ("a".to_owned(), End::Passed),
            ("b".to_owned(), End::Failed("other\nmore".to_owned())),
            ("d".to_owned(), End::Failed("first\nsecond".to_owned())),
            ("e".to_owned(), End::Skipped("one node".to_owned())),
        ],
        names: ["a", "b", "c", "d", "e", "f"].map(str::to_owned).into(),
    };
    let exceptions = BTreeMap::from([("f".to_owned(), "a cloud".to_owned())]);
    merge(&mut rows, Network::Causeway, &report, &exceptions);
    assert_eq!(
        rows,
        [
            row("a", Some(Ended::Passed), Some(Ended::Passed), ""),
            row(
                "b",
                Some(Ended::Failed),
                Some(Ended::Failed),
                "no such socket"
            ),
            row("c", Some(Ended::Passed), Some(Ended::Passed), ""),
            row("d", None, Some(Ended::Failed), "first"),
            row("e", None, Some(Ended::LeftOut), "one node"),
            row("f", Some(Ended::LeftOut), Some(Ended::LeftOut), "a cloud"),
        ]
    );
}

#[test]
fn the_page_is_made_from_the_data() -> Result<()> {
    let written = std::fs::read_to_string(super::file("conformance.md"))?;
    assert_eq!(written, page::of(&read()?));
    Ok(())
}

#[test]
fn each_spec_that_is_left_out_has_a_reason() -> Result<()> {
    for (spec, reason) in exceptions()? {
        assert!(spec.starts_with("[sig-network]"), "{spec}");
        assert!(!reason.is_empty(), "{spec}");
    }
    Ok(())
}
