//! Where requests meet health: what a pick may use, what an outcome says of its target, and what ends with its target.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::{Response, StatusCode};

use super::super::error::{Error, Kind};
use super::super::pool::{InFlight, Target};
use super::super::response::UpstreamBody;
use super::super::{Member, Upstream};
use super::WHOLE;

impl Upstream {
    /// What a target may be picked by: that it is up. Only when none is, that it resolves.
    pub(in crate::upstream) fn fails_open_now(&self) -> bool {
        let open = self.fails_open();
        if open {
            self.ward.fail_open(&self.name);
        }
        open
    }

    /// Whether every target is down or ejected, so that all that resolve are used.
    pub fn fails_open(&self) -> bool {
        let mut resolved = false;
        for (member, weight) in self.members.iter().zip(&self.weights) {
            // One that an operator took out is none that could be better.
            if *weight > 0 && member.target.is_last_resort() {
                if member.target.health().is_up() {
                    return false;
                }
                resolved = true;
            }
        }
        resolved
    }

    /// The weights as they count now. With slow start all are in [`WHOLE`]ths, always: what a policy remembers from pick to
    /// pick is in the same unit. Allocates only while a target is warming up.
    pub(in crate::upstream) fn weights_now(&self) -> Cow<'_, [u32]> {
        if self.slow_start.is_zero() {
            return Cow::Borrowed(&self.weights);
        }
        let mut all = self.members.iter();
        if !all.any(|member| member.target.health().is_warming()) {
            return Cow::Borrowed(&self.whole_weights);
        }
        let share = |member: &Member| member.target.health().share(self.slow_start);
        let members = self.members.iter().zip(&self.weights);
        members
            .map(|(member, weight)| weight * share(member))
            .collect()
    }

    /// Waits for a try, and lets it end with its target from then on, where that is wanted. The caller pins it: taken by
    /// value it would have two places in the request's future.
    pub(in crate::upstream) async fn ending_with_target<T>(
        &self,
        member: &Member,
        mut trying: Pin<&mut impl Future<Output = Result<(T, InFlight), Error>>>,
    ) -> Result<(T, InFlight), Error> {
        if !self.cuts {
            return trying.await;
        }
        let mut down = Box::pin(member.target.health().cut().cancelled_owned());
        let tried = poll_fn(|cx| match trying.as_mut().poll(cx) {
            Poll::Ready(tried) => Poll::Ready(tried),
            Poll::Pending => {
                let down = down.as_mut().poll(cx);
                down.map(|()| Err(went_down(&member.target)))
            }
        });
        let (answer, mut flight) = tried.await?;
        flight.cut = Some(down);
        Ok((answer, flight))
    }

    /// What has no try of its own: it ends with its target where that is wanted, and may tell what became of it
    /// ([`InFlight::broken`]).
    pub(in crate::upstream) fn watched(&self, member: &Member, mut flight: InFlight) -> InFlight {
        flight.passive = self.passive.clone();
        if self.cuts {
            flight.cut = Some(Box::pin(member.target.health().cut().cancelled_owned()));
        }
        flight
    }

    /// A try came to an answer or to an error.
    pub(in crate::upstream) fn note(
        &self,
        member: &Member,
        outcome: &mut Result<(Response<UpstreamBody>, InFlight), Error>,
    ) {
        let Some(passive) = &self.passive else {
            return;
        };
        let health = member.target.health();
        match outcome {
            Ok((response, flight)) => {
                passive.answered(health, response.status());
                flight.passive = Some(passive.clone());
            }
            Err(error) => passive.failed(health, error),
        }
    }

    /// A try that was no request was answered so.
    pub(in crate::upstream) fn note_status(&self, member: &Member, status: StatusCode) {
        if let Some(passive) = &self.passive {
            passive.answered(member.target.health(), status);
        }
    }

    /// A try came to an error.
    pub(in crate::upstream) fn note_error(&self, member: &Member, error: &Error) {
        if let Some(passive) = &self.passive {
            passive.failed(member.target.health(), error);
        }
    }
}

impl InFlight {
    /// Ready when it must end because its target went down.
    pub fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.cut {
            Some(cut) => cut.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// Its answer broke: that says something of the target.
    pub fn broken(&self, error: &Error) {
        if let Some(passive) = &self.passive {
            passive.failed(self.target.health(), error);
        }
    }

    /// Why it ended.
    pub fn cut_error(&self) -> Error {
        went_down(&self.target)
    }
}

fn went_down(target: &Target) -> Error {
    let detail = format!("{}: the target went down", target.key().1);
    Error::upstream(Kind::ConnectionTerminated, detail)
}

/// The weights of an upstream whose targets are all warm, in the unit of [`Upstream::weights_now`].
pub(in crate::upstream) fn whole(weights: &[u32]) -> Box<[u32]> {
    weights.iter().map(|weight| weight * WHOLE).collect()
}

const _: () = assert!(WHOLE <= u32::MAX / 1000, "weights are up to 1000");
