//! What has come over an SSH channel of its own and waits for its consumer.
//!
//! The library takes a channel's bytes off the session whether or not anybody wants them, gives the
//! peer new room at once, and stops the whole session when a channel's reader is slow. So a task of
//! its own always takes what comes, and puts it here; past a limit that one connection is given up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use russh::{ChannelMsg, ChannelReadHalf};
use tokio::sync::Notify;

use super::counters::Refusal;
use super::memory::{Account, Budget};

/// The reader's end.
#[derive(Debug)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Bytes>,
    /// Bytes that wait or are being written.
    bytes: usize,
    account: Account,
    limit: usize,
    end: Option<Result<(), Refusal>>,
}

impl State {
    fn push(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        let total = self.bytes + bytes.len();
        if total > self.limit {
            return Err(Refusal::SlowConsumer);
        }
        if !self.account.set(total) {
            return Err(Refusal::Memory);
        }
        self.bytes = total;
        self.waiting.push_back(bytes);
        Ok(())
    }
}

/// Makes the queue of a channel and what fills it, which is to be run as a task.
pub fn of(
    channel: ChannelReadHalf,
    budget: &Budget,
    limit: usize,
) -> (Queue, impl Future<Output = ()> + Send + use<>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            waiting: VecDeque::new(),
            bytes: 0,
            account: budget.account(),
            limit,
            end: None,
        }),
        changed: Notify::new(),
    });
    let queue = Queue {
        shared: Arc::clone(&shared),
    };
    (queue, fill(channel, shared))
}

async fn fill(mut channel: ChannelReadHalf, shared: Arc<Shared>) {
    let mut ended = false;
    while let Some(message) = channel.wait().await {
        let end = match message {
            ChannelMsg::Data { data } => {
                let pushed = shared.change(|state| state.push(data));
                pushed.err().map(Err)
            }
            ChannelMsg::Eof => Some(Ok(())),
            // A close without an end before it: the peer has broken off.
            ChannelMsg::Close => Some(Err(Refusal::Reset)),
            _ => None,
        };
        if let Some(end) = end
            && !ended
        {
            ended = true;
            shared.change(|state| {
                if end.is_err() {
                    state.waiting.clear();
                }
                state.end = Some(end);
            });
        }
        // What comes after that is taken all the same, and dropped.
    }
    shared.change(|state| {
        state.end.get_or_insert(Err(Refusal::SessionLost));
    });
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
        result
    }
}

impl Queue {
    /// The next bytes; none: the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, Refusal>> {
        loop {
            {
                let mut state = self
                    .shared
                    .state
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some(bytes) = state.waiting.pop_front() {
                    return Some(Ok(bytes));
                }
                match state.end {
                    Some(Ok(())) => return None,
                    Some(Err(why)) => return Some(Err(why)),
                    None => {}
                }
            }
            self.shared.changed.notified().await;
        }
    }

    /// The consumer has taken so many bytes.
    pub fn taken(&self, bytes: usize) {
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes);
        let now = state.bytes;
        state.account.set(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_full_for_itself_or_for_all() {
        let budget = Budget::new(1_000);
        let state = |limit| State {
            waiting: VecDeque::new(),
            bytes: 0,
            account: budget.account(),
            limit,
            end: None,
        };
        let (mut one, mut other) = (state(600), state(600));
        let bytes = |length| Bytes::from(vec![0; length]);
        assert_eq!(one.push(bytes(600)), Ok(()));
        assert_eq!(one.push(bytes(1)), Err(Refusal::SlowConsumer));
        assert_eq!(other.push(bytes(400)), Ok(()));
        assert_eq!(other.push(bytes(1)), Err(Refusal::Memory));
        assert_eq!(budget.used(), 1_000);
        drop(one);
        assert_eq!(other.push(bytes(1)), Ok(()));
    }
}
