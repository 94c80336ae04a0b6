//! Every transition, by table; then random walks against what must always hold.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// A leg and its clock.
struct Bench {
    leg: Leg,
    now: Instant,
}

fn id(number: u64) -> SessionId {
    SessionId(number)
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let mut bench = Self {
            leg: Leg::new(Policy::default(), 7),
            now,
        };
        assert_eq!(bench.leg.state(), State::Stopped);
        assert_eq!(bench.leg.start(now), [Action::Dial(id(0))]);
        bench
    }

    /// One that carries.
    fn up() -> Self {
        let mut bench = Self::new();
        bench.connect(0);
        bench
    }

    fn connect(&mut self, session: u64) {
        let session = id(session);
        let listen = self.tell(Event::Authenticated(session));
        assert_eq!(listen, [Action::Listen(session)]);
        let actions = self.tell(Event::Listening(session));
        assert_eq!(actions.last(), Some(&Action::Probe(session)));
        assert_eq!(self.leg.carrier(), Some(session));
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.leg.handle(event, self.now)
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.leg.tick(self.now)
    }

    /// Goes from deadline to deadline, at most so far, until something is done.
    fn until_action(&mut self, limit: Duration) -> (Duration, Vec<Action>) {
        let start = self.now;
        while let Some(deadline) = self.leg.deadline() {
            assert!(deadline - start <= limit, "nothing within {limit:?}");
            self.now = deadline.max(self.now);
            let actions = self.leg.tick(self.now);
            if !actions.is_empty() {
                return (self.now - start, actions);
            }
        }
        panic!("no deadline");
    }
}

#[test]
fn connects_listens_carries() {
    let mut bench = Bench::new();
    assert_eq!(bench.leg.state(), State::Connecting);
    assert_eq!(
        bench.tell(Event::Authenticated(id(0))),
        [Action::Listen(id(0))]
    );
    assert_eq!(bench.leg.state(), State::Listening);
    assert!(!bench.leg.state().carries());
    assert_eq!(bench.tell(Event::Listening(id(0))), [Action::Probe(id(0))]);
    assert_eq!(bench.leg.state(), State::Up);
    assert_eq!(bench.leg.up_since(), Some(bench.now));
}

/// Waits after failures in a row, by cause: the least and the most that the table allows.
#[test]
fn waits_depend_on_the_cause() {
    type Row = (Cause, &'static [(u64, u64)]);
    let usual: &[(u64, u64)] = &[(100, 125), (150, 250), (300, 500), (600, 1_000)];
    let rows: &[Row] = &[
        (Cause::Unreachable, usual),
        (Cause::Protocol, usual),
        (Cause::TimedOut, usual),
        (Cause::Key, usual),
        (Cause::Closed, usual),
        (Cause::HungUp, &[(1_000, 1_000), (1_000, 1_000)]),
        (
            Cause::Authentication,
            &[(6_000, 7_500), (9_000, 15_000), (18_000, 30_000)],
        ),
        (Cause::HostKey, &[(6_000, 7_500), (9_000, 15_000)]),
    ];
    for (cause, waits) in rows {
        let mut bench = Bench::new();
        for (session, (least, most)) in (0..).zip(*waits) {
            assert_eq!(bench.tell(Event::Ended(id(session), *cause)), []);
            assert_eq!(bench.leg.state(), State::Waiting { cause: *cause });
            let (waited, actions) = bench.until_action(Duration::from_mins(5));
            assert_eq!(actions, [Action::Dial(id(session + 1))], "{cause:?}");
            let (least, most) = (Duration::from_millis(*least), Duration::from_millis(*most));
            assert!(
                (least..=most).contains(&waited),
                "{cause:?} {session}: {waited:?}"
            );
        }
    }
}

/// 5 s are added for each failure and more than 15 s shut us out: what is due must stay below.
#[test]
fn wrong_keys_never_reach_the_peers_penalty_threshold() {
    let mut bench = Bench::new();
    let mut due = Duration::ZERO;
    for session in 0..50 {
        bench.tell(Event::Ended(id(session), Cause::Authentication));
        due += Duration::from_secs(5);
        assert!(due <= Duration::from_secs(15), "{session}: {due:?}");
        let (waited, _) = bench.until_action(Duration::from_mins(6));
        due = due.saturating_sub(waited);
    }
}

#[test]
fn waits_grow_to_ten_seconds_and_begin_anew_once_it_carries() {
    let mut bench = Bench::new();
    for session in 0..20 {
        bench.tell(Event::Ended(id(session), Cause::Unreachable));
        let (waited, _) = bench.until_action(Duration::from_secs(10));
        if session > 10 {
            assert!(waited >= Duration::from_millis(7_500), "{waited:?}");
        }
    }
    bench.connect(20);
    // The first dial after a loss is at once, the next waits shortly.
    assert_eq!(
        bench.tell(Event::Ended(id(20), Cause::Closed)),
        [Action::Dial(id(21))]
    );
    bench.tell(Event::Ended(id(21), Cause::Unreachable));
    let (waited, _) = bench.until_action(Duration::from_secs(1));
    assert!(waited <= 125 * MS, "{waited:?}");
}

#[test]
fn steps_that_take_too_long_are_given_up() {
    let mut bench = Bench::new();
    assert_eq!(bench.after(Duration::from_millis(9_999)), []);
    assert_eq!(bench.after(MS), [Action::Close(id(0), Cause::TimedOut)]);
    let (_, actions) = bench.until_action(Duration::from_secs(1));
    assert_eq!(actions, [Action::Dial(id(1))]);
    bench.tell(Event::Authenticated(id(1)));
    let (waited, actions) = bench.until_action(Duration::from_secs(6));
    assert_eq!(actions, [Action::Close(id(1), Cause::TimedOut)]);
    assert_eq!(waited, Duration::from_secs(5));
}

#[test]
fn three_questions_without_a_sign_of_life_end_a_session() {
    let mut bench = Bench::up();
    let start = bench.now;
    for _ in 0..3 {
        assert_eq!(
            bench.after(Duration::from_secs(1)),
            [Action::Ping(id(0))],
            "once a second"
        );
    }
    assert_eq!(bench.leg.state(), State::Up);
    assert_eq!(
        bench.after(Duration::from_secs(1)),
        [
            Action::Close(id(0), Cause::Silent),
            Action::Dial(id(1)) // at once
        ]
    );
    assert_eq!(bench.now - start, Duration::from_secs(4));
    assert_eq!(bench.leg.last_cause(), Cause::Silent);
}

#[test]
fn any_sign_of_life_counts() {
    let mut bench = Bench::up();
    for second in 0..100 {
        let asked = bench.after(Duration::from_secs(1));
        assert_eq!(asked, [Action::Ping(id(0))]);
        if second % 3 == 2 {
            bench.tell(Event::Heard(id(0)));
        }
    }
    assert_eq!(bench.leg.carrier(), Some(id(0)));
}

#[test]
fn a_planned_reconnect_makes_before_it_breaks() {
    let mut bench = Bench::up();
    assert_eq!(bench.tell(Event::Reconnect), [Action::Dial(id(1))]);
    assert_eq!(bench.leg.state(), State::Up, "the old one still carries");
    assert_eq!(bench.tell(Event::Reconnect), [], "one is on its way");
    bench.tell(Event::Authenticated(id(1)));
    assert_eq!(bench.leg.carrier(), Some(id(0)));
    assert_eq!(
        bench.tell(Event::Listening(id(1))),
        [Action::Release(id(0)), Action::Probe(id(1))]
    );
    assert_eq!(bench.leg.carrier(), Some(id(1)));
    assert_eq!(
        bench.tell(Event::Drained(id(0))),
        [Action::Close(id(0), Cause::Replaced)]
    );
    assert_eq!(
        bench.tell(Event::Ended(id(0), Cause::Closed)),
        [],
        "known to be over"
    );
    assert_eq!(bench.leg.state(), State::Up);
}

#[test]
fn a_peer_that_gives_a_port_to_one_session_alone_is_handed_over() {
    let mut bench = Bench::up();
    bench.tell(Event::Reconnect);
    bench.tell(Event::Authenticated(id(1)));
    assert_eq!(
        bench.tell(Event::Refused(id(1), 37_140)),
        [Action::Release(id(0)), Action::Listen(id(1))]
    );
    assert_eq!(bench.tell(Event::Listening(id(1))), [Action::Probe(id(1))]);
    assert_eq!(bench.leg.carrier(), Some(id(1)));
}

#[test]
fn a_failed_replacement_leaves_the_old_one_alone() {
    let mut bench = Bench::up();
    bench.tell(Event::Reconnect);
    bench.tell(Event::Ended(id(1), Cause::Unreachable));
    assert_eq!(bench.leg.carrier(), Some(id(0)));
    let (waited, actions) = bench.until_action(Duration::from_secs(1));
    assert_eq!(actions, [Action::Dial(id(2))], "it is still wanted");
    assert!(waited <= 125 * MS);
    bench.connect(2);
}

#[test]
fn what_is_drained_too_slowly_is_closed() {
    let mut bench = Bench::up();
    bench.tell(Event::Reconnect);
    bench.connect(1);
    let end = bench.now + Policy::default().drain_within;
    while bench.now < end {
        bench.tell(Event::Heard(id(1)));
        let actions = bench.after(Duration::from_secs(1));
        let closed = actions.contains(&Action::Close(id(0), Cause::Replaced));
        assert_eq!(closed, bench.now >= end);
    }
}

#[test]
fn no_more_than_four_drain() {
    let mut bench = Bench::up();
    for next in 1..=4 {
        bench.tell(Event::Reconnect);
        bench.connect(next);
    }
    bench.tell(Event::Reconnect);
    bench.tell(Event::Authenticated(id(5)));
    let actions = bench.tell(Event::Listening(id(5)));
    assert!(actions.contains(&Action::Close(id(0), Cause::Replaced)));
}

#[test]
fn a_port_that_a_dead_session_holds_is_asked_for_again_on_the_same_session() {
    let mut bench = Bench::new();
    bench.tell(Event::Authenticated(id(0)));
    for attempt in 0..12 {
        assert_eq!(bench.tell(Event::Refused(id(0), 37_141)), []);
        assert_eq!(bench.leg.state(), State::Blocked { port: 37_141 });
        let (waited, actions) = bench.until_action(Duration::from_secs(2));
        assert_eq!(actions, [Action::Listen(id(0))]);
        if attempt == 0 {
            assert!((250 * MS..=313 * MS).contains(&waited), "{waited:?}");
        }
    }
    assert_eq!(bench.tell(Event::Listening(id(0))), [Action::Probe(id(0))]);
}

#[test]
fn a_listener_on_the_loopback_alone_is_no_tunnel() {
    let mut bench = Bench::up();
    let exposure = Exposure::LoopbackOnly;
    bench.tell(Event::Exposed(id(0), exposure));
    assert_eq!(bench.leg.state(), State::Degraded { exposure });
    assert!(bench.leg.state().carries());
    bench.tell(Event::Exposed(id(0), Exposure::Reachable));
    assert_eq!(bench.leg.state(), State::Up);
}

#[test]
fn a_changed_key_ends_a_penalty() {
    let mut bench = Bench::new();
    for session in 0..5 {
        bench.tell(Event::Ended(id(session), Cause::Authentication));
        bench.until_action(Duration::from_mins(5));
    }
    bench.tell(Event::Ended(id(5), Cause::Authentication));
    assert_eq!(bench.tell(Event::Credentials), [Action::Dial(id(6))]);
    bench.connect(6);
    assert_eq!(bench.tell(Event::Credentials), [], "what is up stays up");
}

#[test]
fn stopping_closes_everything_and_nothing_follows() {
    let mut bench = Bench::up();
    bench.tell(Event::Reconnect);
    assert_eq!(
        bench.tell(Event::Stop),
        [
            Action::Close(id(0), Cause::Stopped),
            Action::Close(id(1), Cause::Stopped)
        ]
    );
    for event in [
        Event::Ended(id(1), Cause::Closed),
        Event::Listening(id(1)),
        Event::Reconnect,
        Event::Credentials,
    ] {
        assert_eq!(bench.tell(event), []);
    }
    assert_eq!(bench.leg.deadline(), None);
    assert_eq!(bench.leg.state(), State::Stopped);
}

#[test]
fn who_retires_finishes_what_it_carries() {
    let mut bench = Bench::up();
    bench.tell(Event::Reconnect);
    assert_eq!(
        bench.tell(Event::Retire),
        [Action::Close(id(1), Cause::Stopped), Action::Release(id(0))]
    );
    assert!(!bench.leg.is_over());
    assert_eq!(bench.leg.state(), State::Stopped);
    assert_eq!(bench.tell(Event::Reconnect), []);
    assert_eq!(
        bench.tell(Event::Drained(id(0))),
        [Action::Close(id(0), Cause::Replaced)]
    );
    assert!(bench.leg.is_over());
    assert_eq!(bench.leg.deadline(), None);
}

#[test]
fn a_tunnel_is_as_well_as_its_legs() {
    let wait = State::Waiting {
        cause: Cause::Closed,
    };
    let loopback = State::Degraded {
        exposure: Exposure::LoopbackOnly,
    };
    let rows: &[(&[State], Health)] = &[
        (&[], Health::Down),
        (&[State::Up], Health::Up),
        (&[State::Up, State::Up], Health::Up),
        (&[State::Up, wait], Health::Degraded),
        (&[State::Up, loopback], Health::Degraded),
        (&[loopback, loopback], Health::Degraded),
        (&[State::Connecting, State::Listening], Health::Down),
        (&[State::Blocked { port: 1 }, State::Stopped], Health::Down),
    ];
    for (legs, health) in rows {
        assert_eq!(Health::of(legs), *health, "{legs:?}");
    }
}

fn event() -> impl Strategy<Value = (u64, u8, u64)> {
    // Milliseconds that pass, which event, and how many sessions back it is about.
    (
        prop_oneof![Just(0_u64), 1..1_500_u64, 10_000..20_000_u64],
        0..11_u8,
        0..3_u64,
    )
}

proptest! {
    /// Whatever happens, in whatever order: one session carries, one is on its way, each dialled
    /// session is closed or has ended before it is forgotten, and there is always a next step.
    #[test]
    fn random_walks_keep_the_invariants(steps in proptest::collection::vec(event(), 1..300)) {
        let mut now = Instant::now();
        let mut leg = Leg::new(Policy::default(), 3);
        let mut dialled = 0_u64;
        let mut open = std::collections::BTreeSet::new();
        let mut actions = leg.start(now);
        for (wait, kind, back) in steps {
            for action in &actions {
                match *action {
                    Action::Dial(new) => {
                        prop_assert_eq!(new, id(dialled), "numbers are not used twice");
                        dialled += 1;
                        open.insert(new);
                    }
                    Action::Close(old, _) => prop_assert!(open.remove(&old), "closed once"),
                    Action::Listen(one) | Action::Release(one) | Action::Probe(one)
                    | Action::Ping(one) => prop_assert!(open.contains(&one)),
                }
            }
            let known: std::collections::BTreeSet<_> =
                leg.sessions.iter().map(|session| session.id).collect();
            prop_assert_eq!(&known, &open, "none is forgotten");
            let up = |s: &&Session| matches!(s.step, Step::Up { .. });
            let draining = |s: &&Session| matches!(s.step, Step::Draining { .. });
            let ups = leg.sessions.iter().filter(up).count();
            let drains = leg.sessions.iter().filter(draining).count();
            prop_assert!(ups <= 1 && drains <= DRAINING);
            prop_assert!(leg.sessions.len() - ups - drains <= 1);
            prop_assert!(leg.deadline().is_some(), "never stuck: {:?}", leg);
            now += MS * u32::try_from(wait).unwrap();
            let one = id(dialled.saturating_sub(1 + back));
            let told = match kind {
                0 => Some(Event::Authenticated(one)),
                1 => Some(Event::Listening(one)),
                2 => Some(Event::Refused(one, 1)),
                3 => Some(Event::Heard(one)),
                4 => Some(Event::Drained(one)),
                5 => Some(Event::Ended(one, Cause::Closed)),
                6 => Some(Event::Ended(one, Cause::Authentication)),
                7 => Some(Event::Reconnect),
                8 => Some(Event::Credentials),
                9 => Some(Event::Exposed(one, Exposure::LoopbackOnly)),
                _ => None,
            };
            if let Some(Event::Ended(gone, _)) = told {
                open.remove(&gone);
            }
            actions = match told {
                Some(event) => leg.handle(event, now),
                None => leg.tick(now),
            };
        }
    }
}
