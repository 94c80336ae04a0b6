//! In which line of a document a field stands.

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A document's shape: where everything is, and nothing of what it is.
enum Shape {
    Leaf,
    Map(Vec<(Spanned<String>, Spanned<Shape>)>),
    Sequence(Vec<Spanned<Shape>>),
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;

        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_none<E>(self) -> Result<Shape, E> {
                Ok(Shape::Leaf)
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Shape, D::Error> {
                IgnoredAny::deserialize(inner).map(|_| Shape::Leaf)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Shape::Map(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = sequence.next_element()? {
                    entries.push(entry);
                }
                Ok(Shape::Sequence(entries))
            }
        }

        deserializer.deserialize_any(ShapeVisitor)
    }
}

/// Lines of a document's fields.
pub(super) struct Lines {
    root: Option<Spanned<Shape>>,
}

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        let options = super::document::options();
        Self {
            root: serde_saphyr::from_str_with_options(text, options).ok(),
        }
    }

    /// The line, from 0 on, of a field such as `spec.ports[0].port`; that of the nearest one
    /// around it if it isn't there.
    pub(super) fn line(&self, field: &str) -> u32 {
        let Some(mut node) = self.root.as_ref() else {
            return 0;
        };
        let mut line = node.referenced.line();
        for step in steps(field) {
            let next = match &node.value {
                Shape::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key.value == step)
                    .map(|(key, value)| (key.referenced.line(), value)),
                Shape::Sequence(entries) => step
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| entries.get(index))
                    .map(|value| (value.referenced.line(), value)),
                Shape::Leaf => None,
            };
            let Some((at, value)) = next else { break };
            line = at;
            node = value;
        }
        u32::try_from(line.saturating_sub(1)).unwrap_or_default()
    }
}

/// `a.b[0][c.d]` as `a`, `b`, `0`, `c.d`.
fn steps(field: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    let mut rest = field;
    while !rest.is_empty() {
        let (step, after) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap_or((inner, "")),
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        steps.push(step);
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_lines() {
        let text = "a: 1\nspec:\n  ports:\n  - port: 80\n    name: x\n  - name: y\n    \
                    deep:\n      k.l/m: v\n";
        let lines = Lines::of(text);
        let rows = [
            ("a", 0),
            ("spec", 1),
            ("spec.ports", 2),
            ("spec.ports[0]", 3),
            ("spec.ports[0].name", 4),
            ("spec.ports[1]", 5),
            ("spec.ports[1].deep[k.l/m]", 7),
            ("spec.ports[1].port", 5),
            ("spec.ports[7].port", 2),
            ("status.nothing", 0),
        ];
        for (field, line) in rows {
            assert_eq!(lines.line(field), line, "{field}");
        }
    }

    #[test]
    fn finds_lines_of_json() {
        let lines =
            Lines::of("{\n  \"spec\": {\n    \"ports\": [\n      {\"port\": 1}\n    ]\n  }\n}");
        assert_eq!(lines.line("spec.ports[0].port"), 3);
    }
}
