//! An upstream that is other upstreams, each with a share of the requests: a request is led down to one with targets, and
//! is that one's alone from then on.
//!
//! By chance, not in turn: a client whose requests come in a rhythm would otherwise always meet the same member, and
//! workers would have to agree.

use std::sync::Arc;

use ::http::HeaderValue;

use super::sticky::StickyId;
use super::{Target, Upstream, balance};

/// The members of a split.
#[derive(Debug)]
pub(super) struct Split {
    members: Box<[Arc<Upstream>]>,
    /// By member.
    shares: Box<[u32]>,
}

/// Where a request goes.
#[derive(Debug)]
pub struct Choice<'a> {
    /// It has targets of its own.
    pub upstream: &'a Upstream,
    /// What keeps the client with the members that it came through, where it does not know that yet.
    pub cookies: Vec<HeaderValue>,
}

impl Upstream {
    /// Makes a split of it; `members` in the order of its spec.
    #[must_use]
    pub fn over(mut self, members: Vec<(Arc<Upstream>, u32)>) -> Upstream {
        let (members, shares): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        self.split = Some(Split {
            members: members.into(),
            shares: shares.into(),
        });
        self
    }

    /// Its members, if it is a split, with their shares.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Upstream>, u32)> {
        let split = self.split.iter();
        split.flat_map(|split| split.members.iter().zip(split.shares.iter().copied()))
    }

    /// Every target that a request may end at, however small its share.
    pub fn leaves(&self) -> Vec<&Arc<Target>> {
        let own = self.members.iter().map(|member| &member.target);
        let below = self.members().flat_map(|(member, _)| member.leaves());
        own.chain(below).collect()
    }

    /// The upstream that a request is for: itself, or the member that its cookie names, else one by share. A member
    /// without a usable target is passed over as long as there is another. `cookie` looks up a name.
    pub fn lead(&self, cookie: impl Fn(&str) -> Option<StickyId>, secure: bool) -> Choice<'_> {
        let mut choice = Choice {
            upstream: self,
            cookies: Vec::new(),
        };
        while let Some(split) = &choice.upstream.split {
            let sticky = choice.upstream.sticky.as_ref();
            let had = sticky.and_then(|sticky| cookie(sticky.cookie()));
            let kept = sticky.and_then(|sticky| sticky.member(had?));
            let kept = kept.filter(|index| split.is_usable(*index, true));
            let Some(index) = kept.or_else(|| split.by_share()) else {
                // No document has such a split.
                break;
            };
            let set = sticky.and_then(|sticky| sticky.set_cookie(index, had, secure));
            choice.cookies.extend(set);
            choice.upstream = &split.members[index];
        }
        choice
    }

    /// Whether some target of it could take a request now; `own`: of a client that was here before.
    fn has_usable(&self, own: bool) -> bool {
        if let Some(split) = &self.split {
            return (0..split.members.len()).any(|index| split.is_usable(index, own));
        }
        let mut members = self.members.iter().zip(&self.weights);
        members.any(|(member, weight)| match own {
            true => member.target.is_up(),
            false => *weight > 0 && member.target.is_for_all(),
        })
    }
}

impl Split {
    fn is_usable(&self, index: usize, own: bool) -> bool {
        self.shares[index] > 0 && self.members[index].has_usable(own)
    }

    fn by_share(&self) -> Option<usize> {
        let chance = |below: u64| fastrand::u64(..below);
        let any = balance::random(&self.shares, chance, |_| true)?;
        if self.is_usable(any, false) {
            return Some(any);
        }
        let other = balance::random(&self.shares, chance, |index| self.is_usable(index, false));
        // Nobody: then its error tells why.
        Some(other.unwrap_or(any))
    }
}
