//! What the source says of records: names, types, documentation.

use super::read;

/// A source file.
pub(super) struct File {
    path: String,
    text: String,
}

/// A field, a constant or a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    /// A field's type, a constant's or a variant's value.
    pub(super) kind: String,
    pub(super) told: String,
}

impl File {
    pub(super) fn read(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: read(path),
        }
    }

    /// What stands between the line that begins with `head` and the closing brace under it, and the
    /// documentation above it.
    fn block(&self, head: &str) -> Option<(String, Vec<&str>)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let opens = |line: &&str| {
            let rest = line.strip_prefix(head);
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        };
        let at = lines.iter().position(opens)?;
        let above = lines[..at].iter().rev();
        let above = above.take_while(|line| line.starts_with("///") || line.starts_with("#["));
        let mut told: Vec<&str> = above.filter_map(|line| line.strip_prefix("///")).collect();
        told.reverse();
        let below = lines[at + 1..].iter().take_while(|line| **line != "}");
        Some((joined(&told), below.copied().collect()))
    }

    fn items(&self, head: &str, item: impl Fn(&str) -> Option<(&str, &str)>) -> Option<Vec<Field>> {
        let (_, lines) = self.block(head)?;
        let (mut fields, mut told) = (Vec::new(), Vec::new());
        for line in lines.into_iter().map(str::trim) {
            if let Some(text) = line.strip_prefix("///") {
                told.push(text);
            } else if let Some((name, kind)) = item(line) {
                fields.push(Field {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    told: joined(&std::mem::take(&mut told)),
                });
            }
        }
        Some(fields)
    }

    /// The fields of a struct, if it is here.
    pub(super) fn find_fields(&self, name: &str) -> Option<Vec<Field>> {
        ["pub struct ", "pub(super) struct "]
            .iter()
            .find_map(|head| self.items(&format!("{head}{name}"), field_of))
    }

    /// The fields of a struct.
    pub(super) fn fields(&self, name: &str) -> Vec<Field> {
        self.find_fields(name)
            .unwrap_or_else(|| panic!("{}: no struct {name}", self.path))
    }

    /// The variants of an enum, or the constants of a module.
    pub(super) fn numbers(&self, name: &str) -> Vec<Field> {
        ["pub enum ", "pub mod "]
            .iter()
            .find_map(|head| self.items(&format!("{head}{name}"), number_of))
            .unwrap_or_else(|| panic!("{}: no numbers {name}", self.path))
    }

    /// The first paragraph of a struct's, an enum's or a module's documentation.
    pub(super) fn told(&self, name: &str) -> String {
        let heads = ["pub struct ", "pub enum ", "pub mod "];
        let told = heads
            .iter()
            .find_map(|head| self.block(&format!("{head}{name}")));
        told.map_or_else(|| panic!("{}: no {name}", self.path), |(told, _)| told)
    }
}

/// Name and type of a field.
fn field_of(line: &str) -> Option<(&str, &str)> {
    let (visibility, rest) = line.strip_suffix(',')?.split_once(' ')?;
    let is_public = visibility.starts_with("pub");
    is_public.then(|| rest.split_once(": "))?
}

/// Name and value of a constant or a variant.
fn number_of(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_end_matches([',', ';']);
    let line = line.strip_prefix("pub const ").unwrap_or(line);
    let (name, value) = line.split_once(" = ")?;
    Some((name.split(':').next()?, value))
}

/// The first paragraph, on one line; links to items become their names.
fn joined(lines: &[&str]) -> String {
    let first = lines.iter().take_while(|line| !line.trim().is_empty());
    let text = first.map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    let text = text.replace("[`", "`").replace("`]", "`");
    // What a link leads to, in parentheses behind it, is for the compiler's documentation.
    let mut parts = text.split("`(");
    let head = parts.next().unwrap_or_default().to_owned();
    parts.fold(head, |text, part| {
        let rest = part.split_once(')').map_or("", |(_, rest)| rest);
        text + "`" + rest
    })
}
