//! A cap for what waits in this process, of all connections together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may wait.
#[derive(Clone, Debug)]
pub struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

impl Budget {
    /// So many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            used: Arc::default(),
            limit,
        }
    }

    /// Bytes that wait now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may wait.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// An account that holds nothing yet.
    #[must_use]
    pub fn account(&self) -> Account {
        Account {
            budget: self.clone(),
            held: 0,
        }
    }
}

/// What waits for one connection. Dropping it gives everything back.
#[derive(Debug)]
pub struct Account {
    budget: Budget,
    held: usize,
}

impl Account {
    /// Says that so many bytes wait now; false: that is too much for all together, and nothing has
    /// changed.
    pub fn set(&mut self, bytes: usize) -> bool {
        if bytes <= self.held {
            let less = self.held - bytes;
            self.budget.used.fetch_sub(less, Ordering::Relaxed);
        } else {
            let more = bytes - self.held;
            let before = self.budget.used.fetch_add(more, Ordering::Relaxed);
            if before.saturating_add(more) > self.budget.limit {
                self.budget.used.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        }
        self.held = bytes;
        true
    }

    /// Bytes that wait for this one.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_share_a_limit_and_give_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (budget.account(), budget.account());
        assert!(one.set(60));
        assert!(!other.set(41));
        assert!(other.set(40));
        assert_eq!(budget.used(), 100);
        assert!(!one.set(61), "nothing changes when it is too much");
        assert_eq!(one.held(), 60);
        assert!(one.set(10));
        assert!(other.set(90));
        drop(other);
        assert_eq!(budget.used(), 10);
        drop(one);
        assert_eq!(budget.used(), 0);
    }
}
