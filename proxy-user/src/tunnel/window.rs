//! How much a stream may have under way: twice what the path holds, and no more, since all that is
//! more only waits somewhere. Pure.

use std::time::{Duration, Instant};

/// The smallest window, bytes, which is also the first.
pub const LEAST: u32 = 128 * 1024;

/// The largest window, bytes: at 20 ms and 5 Gbit/s, 12.5 MB are under way.
pub const MOST: u32 = 16 * 1024 * 1024;

/// As long as nothing has gone faster, a path is taken to have 1 Gbit/s: bytes a second.
const ASSUMED: f64 = 125e6;

/// A minimum of round trip times, and a maximum of rates, is believed for so long.
const BELIEVED: Duration = Duration::from_secs(10);

/// The window of one direction of a session.
#[derive(Clone, Debug)]
pub struct Window {
    most: u32,
    size: u32,
    round_trip: Option<(Duration, Instant)>,
    rate: (f64, Instant),
    last: (u64, Instant),
}

impl Window {
    /// Nothing is known yet. No larger than `most` bytes.
    #[must_use]
    pub fn new(most: u32, now: Instant) -> Self {
        Self {
            most: most.clamp(LEAST, MOST),
            size: LEAST,
            round_trip: None,
            rate: (0.0, now),
            last: (0, now),
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// The shortest round trip of late.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip.map(|(round_trip, _)| round_trip)
    }

    /// Takes in a round trip that took so long, and bytes that have come since the beginning;
    /// returns the new window if it is another.
    pub fn learn(&mut self, round_trip: Duration, received: u64, now: Instant) -> Option<u32> {
        let fresh = |at: Instant| now.saturating_duration_since(at) < BELIEVED;
        let (before, since) = self.last;
        // While it goes as fast as ever, what makes a round trip longer is what waits on the way. A
        // path that has become longer shows in the rate.
        let mut queues = false;
        let time = now.saturating_duration_since(since);
        if !time.is_zero() {
            // Less than 2^52 bytes between two calls.
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let rate = received.saturating_sub(before) as f64 / time.as_secs_f64();
            let (most, at) = self.rate;
            queues = rate * 2.0 >= most && rate > f64::from(LEAST);
            if rate >= most || !fresh(at) {
                self.rate = (rate, now);
            }
            self.last = (received, now);
        }
        match self.round_trip {
            Some((least, at)) if least <= round_trip && (queues || fresh(at)) => {}
            _ => self.round_trip = Some((round_trip, now)),
        }
        let least = self.round_trip.map_or(Duration::ZERO, |(least, _)| least);
        let under_way = self.rate.0.max(ASSUMED) * least.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to what fits"
        )]
        let wanted = (2.0 * under_way).clamp(f64::from(LEAST), f64::from(self.most)) as u32;
        // It never shrinks: with data under way a window would be below zero for a while, and streams
        // with slow consumers were seen to stop for good then (h2 0.4.20).
        (wanted > self.size).then(|| {
            self.size = wanted;
            wanted
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What a path of this round trip and rate (bytes a second) carries with the window as it is,
    /// by streams that always have something to send.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes of a few seconds"
    )]
    fn run(window: &mut Window, round_trip: Duration, limit: f64, rounds: u32) -> u32 {
        let start = window.last.1;
        let mut received = window.last.0;
        for round in 1..=rounds {
            let by_window = f64::from(window.size()) / round_trip.as_secs_f64();
            let step = Duration::from_millis(50);
            received += (by_window.min(limit) * step.as_secs_f64()) as u64;
            window.learn(round_trip, received, start + step * round);
        }
        window.size()
    }

    #[test]
    fn grows_to_twice_what_is_under_way() {
        let mut window = Window::new(MOST, Instant::now());
        let size = run(&mut window, 20 * MS, 250e6, 20);
        assert!((8_000_000..=10_500_000).contains(&size), "{size}");
    }

    #[test]
    fn stays_small_where_the_path_is_short() {
        let mut window = Window::new(MOST, Instant::now());
        assert_eq!(run(&mut window, MS / 10, 600e6, 100), LEAST);
    }

    #[test]
    fn has_a_limit() {
        let mut window = Window::new(4 << 20, Instant::now());
        assert_eq!(run(&mut window, 200 * MS, 1e9, 100), 4 << 20);
        assert_eq!(Window::new(u32::MAX, Instant::now()).most, MOST);
    }

    #[test]
    fn queues_do_not_count_as_distance() {
        let mut window = Window::new(MOST, Instant::now());
        let start = window.last.1;
        window.learn(MS / 5, 0, start);
        let mut received = 0;
        for round in 1..1_000_u32 {
            received += 30_000_000;
            // The path is short; what makes it look long is what waits in it.
            window.learn(5 * MS, received, start + 50 * MS * round);
        }
        assert!(window.size() <= LEAST * 2, "{}", window.size());
    }

    #[test]
    fn a_path_that_has_become_longer_is_believed() {
        let mut window = Window::new(MOST, Instant::now());
        let near = run(&mut window, 2 * MS, 500e6, 300);
        assert!(near <= 2_100_000, "{near}");
        // Its window allows less than half of what it had.
        let far = run(&mut window, 20 * MS, 500e6, 300);
        assert!(far > 6 * near, "{far}");
    }

    #[test]
    fn never_shrinks() {
        let mut window = Window::new(MOST, Instant::now());
        let large = run(&mut window, 20 * MS, 250e6, 20);
        let start = window.last.1;
        let received = window.last.0;
        for second in 1..=12 {
            window.learn(20 * MS, received, start + Duration::from_secs(second));
        }
        assert_eq!(window.size(), large);
    }
}
