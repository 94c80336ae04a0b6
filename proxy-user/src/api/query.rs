//! Questions about the maps, and their answers.

use serde::Serialize;
use serde_json::Value;

use crate::{
    dataplane::{Maps, flows::Totals},
    explain::{self, ExplainError, Packet},
    inspect::{self, InspectError, Look, RecordError},
};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Service ports; of this name.
    Services(Option<String>),
    /// Backends; of this service or at this address.
    Backends(Option<String>),
    /// Connections; of this service or with this address.
    Flows(Option<String>),
    /// Next hops of backends.
    Routes(Option<String>),
    /// Why packets were dropped.
    Drops(Option<String>),
    /// All maps.
    Maps,
    /// Records of a map; the one of this key.
    Records(String, Option<String>),
    /// What would happen to a packet.
    Explain(Packet),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It isn't there.
    #[error("{0}")]
    NotFound(String),
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The kernel refused.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// The kernel refused.
    #[error(transparent)]
    Read(RecordError),
    /// The kernel refused.
    #[error(transparent)]
    Explain(ExplainError),
    /// The answer can't be written as JSON.
    #[error("cannot write the answer: {0}")]
    Write(#[from] serde_json::Error),
}

impl From<RecordError> for QueryError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Unknown { .. } => Self::NotFound(error.to_string()),
            RecordError::Read { .. } => Self::Read(error),
        }
    }
}

impl Query {
    /// Path and query string of the API.
    #[must_use]
    pub fn path(&self) -> String {
        let (noun, key, value) = match self {
            Self::Services(of) => ("services", "of", of.as_deref()),
            Self::Backends(of) => ("backends", "of", of.as_deref()),
            Self::Flows(of) => ("flows", "of", of.as_deref()),
            Self::Routes(of) => ("routes", "of", of.as_deref()),
            Self::Drops(of) => ("drops", "of", of.as_deref()),
            Self::Maps => ("maps", "", None),
            Self::Records(map, key) => {
                let key = key.as_deref().map(|key| format!("?key={}", escape(key)));
                return format!("/v1/maps/{}{}", escape(map), key.unwrap_or_default());
            }
            Self::Explain(packet) => return format!("/v1/explain?{}", packet.query(escape)),
        };
        value.map_or_else(
            || format!("/v1/{noun}"),
            |value| format!("/v1/{noun}?{key}={}", escape(value)),
        )
    }
}

/// Percent-encodes what may not stand in a query as it is (RFC 3986 section 2.3).
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped + char::from(byte).encode_utf8(&mut [0; 4])
        } else {
            escaped + &format!("%{byte:02X}")
        }
    })
}

/// Answers from the maps. `now` is the datapath's clock, in ticks.
pub fn answer(
    query: &Query,
    maps: &Maps,
    totals: Option<&Totals>,
    now: u32,
) -> Result<Value, QueryError> {
    let look = || Look::new(maps, totals, now);
    match query {
        Query::Services(None) => list(look()?.services()),
        Query::Services(Some(name)) => found(look()?.services_named(name), || {
            format!("there is no service {name:?}")
        }),
        Query::Backends(None) => list(look()?.backends()),
        Query::Backends(Some(of)) => found(look()?.backends_of(of), || {
            format!("there is no backend of or at {of:?}")
        }),
        Query::Flows(None) => list(look()?.flows()?),
        Query::Flows(Some(of)) => found(look()?.flows_of(of)?, || {
            format!("there is no connection of or with {of:?}")
        }),
        Query::Routes(of) => {
            let mut rows = explain::routes(&look()?).map_err(QueryError::Explain)?;
            let Some(of) = of else { return list(rows) };
            rows.retain(|row| row.destination.to_string() == *of);
            found(rows, || format!("there is no backend at {of:?}"))
        }
        Query::Drops(of) => {
            let mut rows = inspect::drops(maps)?;
            let Some(of) = of else { return list(rows) };
            rows.retain(|row| row.reason == *of);
            found(rows, || {
                format!("there is no reason {of:?}; `causeway drop list` names all")
            })
        }
        Query::Maps => list(inspect::maps(maps)?),
        Query::Records(map, None) => list(inspect::records(maps, map)?),
        Query::Records(map, Some(key)) => {
            let row = inspect::find_record(maps, map, key)?;
            found(row.into_iter().collect(), || {
                format!("{map} has no record {key:?}")
            })
        }
        Query::Explain(packet) => match explain::explain(packet, maps, &look()?) {
            Ok(explanation) => Ok(serde_json::to_value(explanation)?),
            Err(error @ ExplainError::Invalid { .. }) => {
                Err(QueryError::Invalid(error.to_string()))
            }
            Err(error) => Err(QueryError::Explain(error)),
        },
    }
}

fn list<R: Serialize>(rows: Vec<R>) -> Result<Value, QueryError> {
    Ok(serde_json::to_value(rows)?)
}

fn found<R: Serialize>(rows: Vec<R>, what: impl FnOnce() -> String) -> Result<Value, QueryError> {
    if rows.is_empty() {
        Err(QueryError::NotFound(what()))
    } else {
        list(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        let of = Some("demo/web:http/TCP".to_owned());
        assert_eq!(
            Query::Services(of).path(),
            "/v1/services?of=demo%2Fweb%3Ahttp%2FTCP"
        );
        assert_eq!(Query::Flows(None).path(), "/v1/flows");
        let query = Query::Records("SERVICES_V4".to_owned(), Some("a b".to_owned()));
        assert_eq!(query.path(), "/v1/maps/SERVICES_V4?key=a%20b");
    }
}
