//! The table as a page.

use std::fmt::Write as _;

use super::{Ended, Row};

const TOP: &str = "\
# Conformance

Upstream's end-to-end specs of SIG Network (Kubernetes 1.37.2), run on a cluster of three nodes in three zones:
with the reference network (CNI plugins `bridge` and `portmap`, kube-proxy with nftables), and with Causeway
as the only network. `cargo xtask conformance` runs them and writes this page; the same as data:
[conformance.json](conformance.json).

```console
# cargo xtask conformance                                  # the specs marked `[Conformance]`, with Causeway
# cargo xtask conformance --focus 'Services.*NodePort'     # those with such names
# cargo xtask conformance --network reference              # with what Causeway is compared with
```

";

/// The page of these rows.
pub(super) fn of(rows: &[Row]) -> String {
    let mut page = TOP.to_owned();
    page.push_str("| | passed | failed | left out | not tried |\n|---|---|---|---|---|\n");
    let marked = |row: &&Row| row.spec.contains("[Conformance]");
    for (name, of) in [
        (
            "Causeway",
            (|row| row.causeway) as fn(&Row) -> Option<Ended>,
        ),
        ("reference", |row| row.reference),
    ] {
        let (conformance, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(marked);
        for (kind, rows) in [("`[Conformance]`", conformance), ("others", others)] {
            let count = |ended| rows.iter().filter(|row| of(row) == ended).count();
            line(
                &mut page,
                &format!(
                    "| {name}, {kind} | {} | {} | {} | {} |",
                    count(Some(Ended::Passed)),
                    count(Some(Ended::Failed)),
                    count(Some(Ended::LeftOut)),
                    count(None)
                ),
            );
        }
    }
    line(
        &mut page,
        "\n| spec | Causeway | reference | reason |\n|---|---|---|---|",
    );
    for row in rows {
        line(
            &mut page,
            &format!(
                "| {} | {} | {} | {} |",
                cell(&row.spec),
                word(row.causeway),
                word(row.reference),
                cell(&row.reason)
            ),
        );
    }
    page
}

fn line(page: &mut String, text: &str) {
    let _infallible = writeln!(page, "{text}");
}

fn word(ended: Option<Ended>) -> &'static str {
    match ended {
        Some(Ended::Passed) => "passed",
        Some(Ended::Failed) => "**failed**",
        Some(Ended::LeftOut) => "left out",
        None => "",
    }
}

/// What ends a cell, or begins a link, is written so that it does not.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('[', "\\[")
        .replace('<', "&lt;")
}
