//! Whether a target is used: what its checks say, what its requests say, how warm it is.
//!
//! [`Health`] is a target's lasting part: streaks, states and ejections are carried from generation to generation. What
//! a generation says of it (how to check, when to eject) takes charge when that generation is committed
//! ([`Health::begin`]), never while it is only prepared: an adapt asks no target anything and changes no state. At any
//! time one check is in charge of a target, that of the newest generation that uses it; an older one that still drains
//! has no say.
//!
//! The hot path reads two atomics per target, both of which change only with a state.

mod check;
mod grpc;
mod h2;
mod hooks;
mod passive;
mod probe;
mod ramp;
mod streak;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::TargetKey;
pub(super) use check::{Check, CheckKey};
pub(super) use hooks::whole;
pub(super) use passive::Passive;
use ramp::{Ramp, WHOLE};
use streak::{Change, Rules, Streak};

/// Its checks say that it is down.
const DOWN: u8 = 1;
/// Its requests failed.
const EJECTED: u8 = 2;

/// What lasts of an upstream as a whole, by its name.
#[derive(Debug, Default)]
pub(super) struct Ward {
    /// It has been said that every target is down.
    failing_open: AtomicBool,
    /// Held while it is decided whether one more target may be ejected.
    ejecting: Mutex<()>,
}

impl Ward {
    /// All are down, so all are used: said once until one is up again.
    pub(super) fn fail_open(&self, upstream: &str) {
        if !self.failing_open.swap(true, Ordering::Relaxed) {
            tracing::error!(upstream, "every target is down: all of them are used");
        }
    }

    fn up_again(&self, upstream: &str) {
        if self.failing_open.swap(false, Ordering::Relaxed) {
            tracing::info!(upstream, "not every target is down any more");
        }
    }
}

/// A target's health.
pub struct Health {
    /// For the log.
    key: TargetKey,
    ward: Arc<Ward>,
    /// [`DOWN`] and [`EJECTED`]; 0: used.
    out: AtomicU8,
    ramp: Ramp,
    book: Mutex<Book>,
}

/// What is not needed to pick a target.
#[derive(Debug)]
struct Book {
    streak: Streak,
    last: Option<Last>,
    /// Of the present state.
    since: SystemTime,
    /// A committed generation has used it.
    begun: bool,
    charge: Option<Charge>,
    /// Times of failed requests, the latest last.
    failures: VecDeque<Instant>,
    ejection: Option<Ejection>,
    /// Cancelled, and replaced, when it goes down and a check says that this cuts.
    cut: CancellationToken,
}

/// The check that has the say.
#[derive(Debug)]
struct Charge {
    check: u64,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Ejection {
    why: String,
    /// Ends it.
    _task: AbortOnDropHandle<()>,
}

/// What the last check said.
#[derive(Debug, Clone)]
struct Last {
    at: SystemTime,
    instant: Instant,
    answer: Result<String, String>,
}

/// A target's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Up,
    /// Its checks fail.
    Down,
    /// Its requests failed.
    Ejected,
    /// Its name has not been found yet.
    Unresolved,
}

impl State {
    /// As `/status` shows it.
    pub fn word(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Down => "down",
            State::Ejected => "ejected",
            State::Unresolved => "unresolved",
        }
    }
}

/// What `/status` shows of a target's health.
#[derive(Debug, Clone)]
pub struct Report {
    /// When it came into its state.
    pub since: SystemTime,
    /// Why it is ejected.
    pub ejected: Option<String>,
    pub check: Option<CheckReport>,
}

/// What checks have said last.
#[derive(Debug, Clone)]
pub struct CheckReport {
    pub at: SystemTime,
    pub passed: bool,
    /// Such as `200 OK`, or why it failed.
    pub reason: String,
    /// How many in a row ended like this one.
    pub streak: u32,
}

impl Health {
    pub(super) fn new(key: TargetKey, ward: Arc<Ward>) -> Health {
        Health {
            key,
            ward,
            out: AtomicU8::new(0),
            ramp: Ramp::new(),
            book: Mutex::new(Book {
                streak: Streak::default(),
                last: None,
                since: SystemTime::now(),
                begun: false,
                charge: None,
                failures: VecDeque::new(),
                ejection: None,
                cut: CancellationToken::new(),
            }),
        }
    }

    /// Neither down nor ejected.
    pub(super) fn is_up(&self) -> bool {
        self.out.load(Ordering::Relaxed) == 0
    }

    /// It may get less than its weight.
    fn is_warming(&self) -> bool {
        self.ramp.is_warming()
    }

    /// How much of its weight it gets, in [`WHOLE`]ths, when slow start takes `over`.
    fn share(&self, over: Duration) -> u32 {
        self.ramp.share(over)
    }

    pub(super) fn state(&self) -> State {
        match self.out.load(Ordering::Relaxed) {
            0 => State::Up,
            out if out & DOWN != 0 => State::Down,
            _ => State::Ejected,
        }
    }

    pub(super) fn report(&self) -> Report {
        let book = self.book.lock();
        let check = book.last.as_ref().zip(book.streak.last());
        Report {
            since: book.since,
            ejected: book.ejection.as_ref().map(|e| e.why.clone()),
            check: check.map(|(last, (passed, streak))| CheckReport {
                at: last.at,
                passed,
                reason: match &last.answer {
                    Ok(reason) | Err(reason) => reason.clone(),
                },
                streak,
            }),
        }
    }

    /// Ended when the target goes down and its check says that this cuts.
    pub(super) fn cut(&self) -> CancellationToken {
        self.book.lock().cut.clone()
    }

    /// A generation that uses it is committed: its check takes charge; without one nobody says any more that it is
    /// down. `running`: the upstream ran before, so a target that is new to it starts slowly. `ejects`: the
    /// generation ejects targets.
    pub(super) fn begin(self: &Arc<Self>, check: Option<&Check>, ejects: bool, running: bool) {
        let mut book = self.book.lock();
        if !std::mem::replace(&mut book.begun, true) && running {
            self.ramp.begin();
        }
        match check {
            Some(check) => {
                if book.charge.as_ref().is_none_or(|c| c.check != check.id()) {
                    book.charge = Some(Charge {
                        check: check.id(),
                        _task: check.start(self),
                    });
                }
            }
            None => {
                book.charge = None;
                book.last = None;
                if book.streak.is_down() {
                    self.back(&mut book, DOWN, "it is not checked any more");
                }
                book.streak = Streak::default();
            }
        }
        if !ejects {
            book.failures.clear();
            if book.ejection.take().is_some() {
                self.back(&mut book, EJECTED, "nothing is ejected any more");
            }
        }
    }

    /// The last generation with this check is gone.
    fn end(&self, check: u64) {
        let mut book = self.book.lock();
        book.charge.take_if(|charge| charge.check == check);
    }

    /// Takes a check's answer; false if another check is in charge.
    fn checked(
        &self,
        check: u64,
        answer: Result<String, String>,
        rules: Rules,
        cuts: bool,
    ) -> bool {
        let mut book = self.book.lock();
        if book.charge.as_ref().is_none_or(|c| c.check != check) {
            return false;
        }
        let change = book.streak.take(answer.is_ok(), rules);
        let reason = match &answer {
            Ok(reason) | Err(reason) => reason.clone(),
        };
        book.last = Some(Last {
            at: SystemTime::now(),
            instant: Instant::now(),
            answer,
        });
        match change {
            Some(Change::Down) => {
                self.out.fetch_or(DOWN, Ordering::Relaxed);
                book.since = SystemTime::now();
                let target = &self.key.1;
                tracing::warn!(upstream = %self.key.0, %target, reason, "target is down");
                if cuts {
                    std::mem::take(&mut book.cut).cancel();
                }
            }
            Some(Change::Up) => self.back(&mut book, DOWN, &reason),
            None => {}
        }
        true
    }

    fn back(&self, book: &mut Book, why: u8, reason: &str) {
        let left = self.out.fetch_and(!why, Ordering::Relaxed) & !why;
        // The end of an ejection is no change while it is down.
        if left & DOWN == 0 {
            book.since = SystemTime::now();
        }
        let (upstream, target) = (&self.key.0, &self.key.1);
        if left != 0 {
            let state = self.state().word();
            tracing::info!(%upstream, %target, reason, "target is still {state}");
            return;
        }
        self.ramp.begin();
        tracing::info!(%upstream, %target, reason, "target is up");
        self.ward.up_again(upstream);
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("target", &self.key.1)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
