//! Counting tests from what cargo's test harness prints.

use std::fmt;
use std::ops::AddAssign;

/// How many tests ended which way, and what those said that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Held.
    pub(crate) passed: u64,
    /// Did not hold, or steps that broke off.
    pub(crate) failed: u64,
    /// Marked `#[ignore]`.
    pub(crate) ignored: u64,
    /// What failed tests said, line by line: it is shown again at the end, where it is found in an
    /// output of thousands of lines.
    pub(crate) failures: Vec<String>,
    /// Where in the harness's list of failures the line is that was read last.
    list: List,
}

/// libtest tells what failed between `failures:` and a second `failures:`, which the names follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum List {
    #[default]
    Outside,
    Inside {
        /// How many lines this test has said.
        lines: usize,
    },
}

/// A test's first lines say what did not hold; what follows is mostly a backtrace.
const LINES_PER_TEST: usize = 30;

/// When everything fails, this shows enough.
const LINES: usize = 300;

impl Tally {
    /// Tests that held.
    pub(crate) fn passed(count: u64) -> Self {
        Self {
            passed: count,
            ..Self::default()
        }
    }

    /// A step that did not hold, and why.
    pub(crate) fn failed(why: String) -> Self {
        Self {
            failed: 1,
            failures: vec![why],
            ..Self::default()
        }
    }

    /// Reads a line of a test harness's output; false if it is not the line with the result.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        let counts = self.count(line);
        if counts {
            self.list = List::Outside;
        } else {
            self.listen(line);
        }
        counts
    }

    fn listen(&mut self, line: &str) {
        self.list = match (self.list, line.trim_end()) {
            (List::Outside, "failures:") => List::Inside { lines: 0 },
            (List::Inside { .. }, "failures:") | (List::Outside, _) => List::Outside,
            (List::Inside { lines }, text) => {
                let lines = if text.starts_with("---- ") { 0 } else { lines };
                if lines < LINES_PER_TEST && self.failures.len() < LINES && !text.is_empty() {
                    self.failures.push(text.to_owned());
                }
                List::Inside { lines: lines + 1 }
            }
        };
    }

    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`;
    /// false if the line is not of that kind.
    fn count(&mut self, line: &str) -> bool {
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
        self.failures.extend(other.failures);
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
                ignored: 1,
                ..Tally::default()
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
    #[test]
    fn what_failed_is_kept() {
        let mut tally = Tally::default();
        let long = "frame\n".repeat(100);
        let output = format!(
            "test b ... ok\n\nfailures:\n\n---- a stdout ----\nleft: 1\nright: 2\n{long}\n\
             ---- c stdout ----\nno answer\n\nfailures:\n    a\n    c\n\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored\ntest d ... ok\n"
        );
        for line in output.lines() {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed), (1, 2));
        let (first, rest) = tally.failures.split_at(3);
        assert_eq!(first, ["---- a stdout ----", "left: 1", "right: 2"]);
        let rest: Vec<_> = rest.iter().filter(|line| *line != "frame").collect();
        assert_eq!(rest, ["---- c stdout ----", "no answer"]);
        assert!(tally.failures.len() < 40, "{}", tally.failures.len());
    }
}
