//! Text in columns.

use std::io::{self, Write};

/// Prints rows under headings, each column as wide as its widest cell.
pub fn print<const N: usize>(
    out: &mut impl Write,
    headings: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings = headings.map(str::to_owned);
    for row in std::iter::once(&headings).chain(rows) {
        let pad = |(cell, width): (&String, usize)| format!("{cell:<width$}");
        let cells: Vec<String> = row.iter().zip(widths).map(pad).collect();
        writeln!(out, "  {}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_needed() {
        let mut out = Vec::new();
        let rows = [
            ["longer".to_owned(), "1".to_owned()],
            ["a".to_owned(), "twenty".to_owned()],
        ];
        print(&mut out, ["ONE", "TWO"], &rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "  ONE     TWO\n  longer  1\n  a       twenty\n");
    }
}
