//! Keeps listening where the daemon's picture says.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};

use super::{
    Page, Place,
    listener::{Listener, no_such_family},
    pages, places,
};
use crate::{
    daemon::{Current, View},
    model::{Notice, Severity},
};

/// So long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Serves until `stop` turns true.
pub async fn serve(view: Arc<View>, mut stop: watch::Receiver<bool>) {
    let mut pictures = view.pictures();
    let mut listeners = Listeners::default();
    loop {
        pictures.mark_unchanged();
        listeners.settle(&view).await;
        let again = listeners.again();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            Ok(()) = pictures.changed() => {}
            () = until(again) => {}
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[derive(Default)]
struct Listeners {
    open: BTreeMap<Place, (Page, Listener)>,
    failed: BTreeMap<Place, Failure>,
}

struct Failure {
    page: Page,
    error: io::Error,
    /// Not tried again before.
    again: Instant,
}

impl Listeners {
    /// Listens where it should, and nowhere else.
    async fn settle(&mut self, view: &Arc<View>) {
        let current = view.current();
        let desired = places(&current.config, &current.facts, &current.snapshot.state);
        let kept = |place: &Place, page: &Page| desired.get(place) == Some(page);
        let over: Vec<Place> = self
            .open
            .iter()
            .filter(|(place, (page, listener))| !kept(place, page) || listener.has_ended())
            .map(|(place, _)| *place)
            .collect();
        // What is closed first may be what is opened next.
        for place in over {
            if let Some((_, listener)) = self.open.remove(&place) {
                listener.close().await;
            }
        }
        self.failed
            .retain(|place, failure| kept(place, &failure.page));
        let now = Instant::now();
        for (place, page) in &desired {
            let waits = |failure: &Failure| failure.again > now;
            if !self.open.contains_key(place) && !self.failed.get(place).is_some_and(waits) {
                self.open(view, *place, page, now);
            }
        }
        view.set_unserved(self.notices(&current));
    }

    fn open(&mut self, view: &Arc<View>, place: Place, page: &Page, now: Instant) {
        let known = self.failed.remove(&place);
        match Listener::open(place, pages::router(view, page)) {
            Ok(listener) => {
                tracing::info!(address = %place.address, ?page, "listening");
                self.open.insert(place, (page.clone(), listener));
            }
            Err(error) => {
                let said = known.is_some_and(|known| known.error.kind() == error.kind());
                if !said {
                    tracing::warn!(address = %place.address, ?page, %error, "cannot listen; will be tried again");
                }
                let failure = Failure {
                    page: page.clone(),
                    error,
                    again: now + AGAIN,
                };
                self.failed.insert(place, failure);
            }
        }
    }

    /// When something that failed is tried again; none: nothing has failed.
    fn again(&self) -> Option<Instant> {
        self.failed.values().map(|failure| failure.again).min()
    }

    /// What is to be told of places that could not be had.
    fn notices(&self, current: &Current) -> Vec<Notice> {
        let told = |(place, failure): (&Place, &Failure)| {
            let Failure { page, error, .. } = failure;
            // A kernel without IPv6 has nobody to ask there.
            if matches!(page, Page::Service { v4: false, .. }) && no_such_family(error) {
                return None;
            }
            Some(notice(place, page, error, current))
        };
        self.failed.iter().filter_map(told).collect()
    }
}

fn notice(place: &Place, page: &Page, error: &io::Error, current: &Current) -> Notice {
    let what = format!("cannot listen at {}: {error}", place.address);
    let (object, field, message) = match page {
        Page::Service { object, .. } => (
            Some(object.clone()),
            "spec.healthCheckNodePort",
            format!(
                "{what}; load balancers take this node for one without endpoints: end whoever has \
                 the port (`ss -tlnp` shows it), or give the Service another one"
            ),
        ),
        Page::Health => (
            None,
            "health.address",
            format!(
                "{what}; nobody can ask how this node is: end whoever has the port, or write \
                 another address, or \"off\""
            ),
        ),
        Page::Metrics => (
            None,
            "metrics.address",
            format!(
                "{what}; metrics are at the API's socket alone: end whoever has the port, or \
                 write another address, or \"off\""
            ),
        ),
    };
    let mut notice = Notice {
        severity: match page {
            Page::Service { .. } => Severity::Error,
            Page::Health | Page::Metrics => Severity::Warning,
        },
        origin: None,
        object,
        field: field.to_owned(),
        message,
    };
    current.snapshot.place(&mut notice);
    notice
}
