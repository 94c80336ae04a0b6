//! Verbs that show what the maps hold: asked of the daemon, or read from the pins.

use std::{io::Write, path::Path};

use anyhow::Context;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Exit, Failure,
    arguments::{Arguments, Explain, Map, Noun},
    output::{Output, Row, table},
    rows::RawRecord,
};
use crate::{
    api::{Client, ClientError, Query, QueryError, answer},
    dataplane::{Maps, PinFolder, Ticks},
    explain::{Explanation, Packet, RouteRow},
    inspect::{BackendRow, DropRow, FlowRow, MapRow, RecordRow, ServiceRow},
};

pub(super) fn services<W: Write>(
    arguments: &Arguments,
    noun: &Noun,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    list::<ServiceRow, W>(arguments, &Query::Services(wanted(noun)), output)
}

pub(super) fn backends<W: Write>(
    arguments: &Arguments,
    noun: &Noun,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    list::<BackendRow, W>(arguments, &Query::Backends(wanted(noun)), output)
}

pub(super) fn flows<W: Write>(
    arguments: &Arguments,
    noun: &Noun,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    list::<FlowRow, W>(arguments, &Query::Flows(wanted(noun)), output)
}

pub(super) fn drops<W: Write>(
    arguments: &Arguments,
    noun: &Noun,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    list::<DropRow, W>(arguments, &Query::Drops(wanted(noun)), output)
}

pub(super) fn routes<W: Write>(
    arguments: &Arguments,
    noun: &Noun,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    list::<RouteRow, W>(arguments, &Query::Routes(wanted(noun)), output)
}

pub(super) fn explain<W: Write>(
    arguments: &Arguments,
    explain: &Explain,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let packet = Packet {
        protocol: explain.protocol.clone(),
        source: explain.source.clone(),
        destination: explain.destination.clone(),
        device: explain.device.clone(),
    };
    let explanation: Explanation = ask(arguments, &Query::Explain(packet))?;
    output.show(&explanation, describe)
}

fn describe(explanation: &Explanation) -> String {
    let Explanation {
        packet,
        first,
        hook,
        steps,
        service,
        verdict,
    } = explanation;
    let cells = |step: &crate::explain::Step| {
        vec![
            step.stage.clone(),
            step.question.clone(),
            step.answer.clone(),
        ]
    };
    let steps = table(&["STAGE", "QUESTION", "ANSWER"], steps.iter().map(cells));
    let service = service.as_deref().unwrap_or("none");
    let hook = if first == hook {
        hook.clone()
    } else {
        format!("{first}, then {hook}")
    };
    format!(
        "packet   {packet}\nhook     {hook}\n\n{steps}\nservice  {service}\nverdict  {verdict}\n"
    )
}

pub(super) fn maps<W: Write>(
    arguments: &Arguments,
    map: &Map,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let (query, raw) = match map {
        Map::List => return list::<MapRow, W>(arguments, &Query::Maps, output),
        Map::Dump { map, raw } => (Query::Records(map.to_uppercase(), None), *raw),
        Map::Get { map, key, raw } => (Query::Records(map.to_uppercase(), Some(key.clone())), *raw),
    };
    let rows: Vec<RecordRow> = ask(arguments, &query)?;
    if raw {
        let rows: Vec<RawRecord> = rows.into_iter().map(RawRecord::from).collect();
        return output.list(&rows);
    }
    output.list(&rows)
}

fn wanted(noun: &Noun) -> Option<String> {
    match noun {
        Noun::List => None,
        Noun::Get { name } => Some(name.clone()),
    }
}

fn list<R: Row + Serialize + DeserializeOwned, W: Write>(
    arguments: &Arguments,
    query: &Query,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let rows: Vec<R> = ask(arguments, query)?;
    output.list(&rows)
}

/// The answer to a question, whoever gives it.
pub(super) fn ask<T: DeserializeOwned>(arguments: &Arguments, query: &Query) -> anyhow::Result<T> {
    let value = match get(&arguments.socket(), &query.path()) {
        Err(ClientError::NoDaemon { .. }) => from_pins(&arguments.instance, query)?,
        Err(ClientError::NotFound(message)) => {
            return Err(Failure::new(Exit::NotFound, message).into());
        }
        Err(ClientError::Invalid(message)) => {
            return Err(Failure::new(Exit::Usage, message).into());
        }
        answered => answered?,
    };
    serde_json::from_value(value).context("the daemon's answer is not of this version")
}

/// Asks the daemon.
pub(super) fn get(socket: &Path, path: &str) -> Result<Value, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| ClientError::NoDaemon {
        socket: socket.display().to_string(),
        source,
    })?;
    runtime.block_on(Client::new(socket).get(path))
}

/// Reads the maps that a daemon before has pinned.
fn from_pins(instance: &str, query: &Query) -> anyhow::Result<Value> {
    let folder = PinFolder::new(instance);
    if !folder.maps().exists() {
        let message = format!(
            "the daemon of instance {instance:?} isn't running, and has left no maps at {}; are \
             you root, and is it this instance?",
            folder.path().display(),
        );
        return Err(Failure::new(Exit::NoDaemon, message).into());
    }
    let maps = Maps::open(&folder).context("opening the pinned maps")?;
    let now = Ticks::load()
        .and_then(|ticks| ticks.now())
        .unwrap_or_default();
    answer(query, &maps, None, now).map_err(|error| match error {
        QueryError::NotFound(message) => Failure::new(Exit::NotFound, message).into(),
        QueryError::Invalid(message) => Failure::new(Exit::Usage, message).into(),
        error => error.into(),
    })
}
