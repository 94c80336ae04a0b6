//! Clocks, the CPU to run on, and what a series of rounds says.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("binding to CPU {cpu}"))
}

/// CPU time that the calling thread has used, the softirqs included that ran in its place;
/// nanoseconds.
pub fn thread_time() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("thread CPU time")?;
    Ok(nanoseconds(time.into()))
}

/// CPU time that all threads of this process have used, the softirqs included that ran in their
/// place; nanoseconds.
pub fn process_time() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("process CPU time")?;
    Ok(nanoseconds(time.into()))
}

/// Nanoseconds, for arithmetic.
#[must_use]
pub fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

/// Middle and width of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of the values lie below.
    pub median: f64,
    /// Interquartile range: the width of the middle half.
    pub range: f64,
}

impl Spread {
    /// Of a series in any order.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Result<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        ensure!(!values.is_empty(), "no values were measured");
        values.sort_by(f64::total_cmp);
        let range = quantile(&values, 0.75)? - quantile(&values, 0.25)?;
        Ok(Self {
            median: quantile(&values, 0.5)?,
            range,
        })
    }

    /// Of the ratios of two series, round by round.
    pub fn of_ratios(subject: &[f64], peer: &[f64]) -> Result<Self> {
        ensure!(
            subject.len() == peer.len(),
            "two series that were not measured together"
        );
        Self::of(
            subject
                .iter()
                .zip(peer)
                .map(|(subject, peer)| subject / peer),
        )
    }
}

/// The value below which `share` of the sorted values lie, interpolated between neighbours.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions in a series that fits in memory"
)]
fn quantile(sorted: &[f64], share: f64) -> Result<f64> {
    let place = share * (sorted.len().saturating_sub(1)) as f64;
    let low = *sorted
        .get(place.floor() as usize)
        .context("quantile of an empty series")?;
    let high = sorted.get(place.ceil() as usize).copied().unwrap_or(low);
    Ok(low + (high - low) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_range_are_interpolated() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 2.5,
                range: 1.5
            }
        );
        assert_eq!(
            Spread::of([7.0]).unwrap(),
            Spread {
                median: 7.0,
                range: 0.0
            }
        );
        assert!(Spread::of([]).is_err());
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // A machine that is twice as slow in the second round changes no ratio.
        let spread = Spread::of_ratios(&[1.0, 2.0, 1.0], &[2.0, 4.0, 2.0]).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 0.5,
                range: 0.0
            }
        );
        assert!(Spread::of_ratios(&[1.0], &[]).is_err());
    }
}
