//! Which remarks become Events, and when: each once, and not many at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::run::until;
use super::view::View;
use crate::config::Source;
use crate::model::{Notice, Severity};
use crate::source::apiserver::{Access, Events, Reason};

/// What was told is not told again for so long, unless the API server lost it.
const AGAIN: Duration = Duration::from_hours(1);

/// So many may be told at once,
const BURST: u32 = 10;

/// and one more each time that so much has passed.
const PACE: Duration = Duration::from_secs(10);

/// After a failure nothing is tried for so long.
const PAUSE: Duration = Duration::from_secs(30);

/// Remarks are looked through no more often than this.
const LOOK: Duration = Duration::from_secs(1);

/// What has been told, and what may be.
#[derive(Debug)]
struct Announced {
    /// When each was told.
    told: BTreeMap<Notice, Instant>,
    /// How many may be told now.
    budget: u32,
    /// When the budget last grew.
    grown: Instant,
}

impl Announced {
    const fn new(now: Instant) -> Self {
        Self {
            told: BTreeMap::new(),
            budget: BURST,
            grown: now,
        }
    }

    /// The next remark to tell: an error of an object that has not been told. None: there is none, or it
    /// is not its time.
    fn next<'n>(
        &mut self,
        notices: impl Iterator<Item = &'n Notice>,
        now: Instant,
    ) -> Option<&'n Notice> {
        self.told
            .retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        while self.budget < BURST && now.saturating_duration_since(self.grown) >= PACE {
            self.budget += 1;
            self.grown += PACE;
        }
        if self.budget == BURST {
            self.grown = now;
        }
        let wanted =
            |notice: &&Notice| notice.severity == Severity::Error && notice.object.is_some();
        let mut new = notices
            .filter(wanted)
            .filter(|notice| !self.told.contains_key(*notice));
        if self.budget == 0 { None } else { new.next() }
    }

    /// It was told.
    fn done(&mut self, notice: Notice, now: Instant) {
        self.told.insert(notice, now);
        self.budget = self.budget.saturating_sub(1);
    }
}

/// Tells the API server, if there is one, until `stop` turns true.
pub async fn announce(view: Arc<View>, mut stop: watch::Receiver<bool>) {
    let Source::Kubernetes(access) = view.current().config.source.clone() else {
        return;
    };
    let telling = tell(&view, &access);
    tokio::select! {
        () = telling => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn tell(view: &View, access: &Access) {
    let mut pictures = view.pictures();
    let mut announced = Announced::new(Instant::now());
    let mut events = None;
    loop {
        let current = view.current();
        let now = Instant::now();
        let Some(notice) = announced.next(current.all_notices(), now).cloned() else {
            drop(current);
            // What waits for its time is looked for again.
            tokio::select! {
                changed = pictures.changed() => if changed.is_err() { return },
                () = until(Some(now + PACE)) => {}
            }
            sleep(LOOK).await;
            continue;
        };
        let why = if current.unserved.contains(&notice) {
            Reason::HEALTH_CHECK
        } else {
            Reason::NOT_IN_FORCE
        };
        drop(current);
        if let Err(error) = publish(&mut events, (view, access), &notice, why).await {
            tracing::debug!(%error, "an Event was not written; will be tried again");
            sleep(PAUSE).await;
            continue;
        }
        announced.done(notice, now);
    }
}

async fn publish(
    events: &mut Option<Events>,
    (view, access): (&View, &Access),
    notice: &Notice,
    why: Reason,
) -> Result<(), String> {
    let Some(object) = &notice.object else {
        return Ok(());
    };
    if events.is_none() {
        let node = view.current().config.node.clone();
        *events = Some(Events::connect(access, &node).await?);
    }
    match events {
        Some(events) => events.publish(object, notice, why).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, ObjectRef};

    fn notice(severity: Severity, name: &str) -> Notice {
        let object = ObjectRef {
            kind: Kind::Service,
            namespace: "demo".to_owned(),
            name: name.to_owned(),
        };
        Notice::new(severity, &object, "spec", "wrong")
    }

    #[test]
    fn an_error_is_told_once_and_again_an_hour_later() {
        let now = Instant::now();
        let mut announced = Announced::new(now);
        let all = [
            notice(Severity::Warning, "warned"),
            Notice {
                object: None,
                ..notice(Severity::Error, "file")
            },
            notice(Severity::Error, "web"),
        ];
        assert_eq!(announced.next(all.iter(), now), Some(&all[2]));
        announced.done(all[2].clone(), now);
        assert_eq!(announced.next(all.iter(), now + AGAIN / 2), None);
        assert_eq!(announced.next(all.iter(), now + AGAIN), Some(&all[2]));
    }

    #[test]
    fn many_are_told_one_by_one() {
        let start = Instant::now();
        let mut announced = Announced::new(start);
        let all: Vec<Notice> = (0..100)
            .map(|number| notice(Severity::Error, &number.to_string()))
            .collect();
        let mut tell_all = |now| {
            let mut count = 0;
            while let Some(notice) = announced.next(all.iter(), now).cloned() {
                announced.done(notice, now);
                count += 1;
            }
            count
        };
        assert_eq!(tell_all(start), BURST);
        assert_eq!(tell_all(start + PACE / 2), 0);
        assert_eq!(tell_all(start + PACE), 1);
        assert_eq!(tell_all(start + 4 * PACE), 3);
        assert_eq!(tell_all(start + 100 * PACE), BURST);
    }
}
