//! Counting tests from what cargo's test harness prints.

use std::fmt;
use std::ops::AddAssign;

/// How many tests ended which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Held.
    pub(crate) passed: u64,
    /// Did not hold, or steps that broke off.
    pub(crate) failed: u64,
    /// Marked `#[ignore]`.
    pub(crate) ignored: u64,
}

impl Tally {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`;
    /// false if the line is not of that kind.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        let Some(at) = line.find("test result: ") else {
            return false;
        };
        for part in line.split_at(at).1.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
        true
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} skipped", self.ignored)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut tally = Tally::default();
        assert!(tally.read(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s"
        ));
        assert!(tally.read(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out"
        ));
        assert!(!tally.read("test datapath::parses ... ok"));
        assert_eq!(
            tally,
            Tally {
                passed: 15,
                failed: 2,
                ignored: 1
            }
        );
        assert_eq!(tally.to_string(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_serial_line_may_begin_with_other_output() {
        let mut tally = Tally::default();
        assert!(tally.read("[   3.1] test result: ok. 7 passed; 0 failed; 0 ignored\r"));
        assert_eq!(tally.passed, 7);
    }
}
