//! A cookie that keeps a client with its target, or with its member of a split. It holds a digest of upstream and address,
//! so it means the same after a restart, and to several processes that serve one site. It shows no address, but it is no
//! secret: who knows the configuration can make one, and choose the target by it, which harms nobody.

use ::http::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::{Target, Upstream};
use crate::config::upstream::{SameSite, StickySpec, UpstreamSpec};

/// Letters of an identity: 96 bits.
const LETTERS: usize = 16;
/// They are safe in cookies and URLs (RFC 4648 section 5).
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What stands in the cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StickyId([u8; LETTERS]);

impl StickyId {
    /// Of a target, or of a member of a split.
    fn of(upstream: &str, kind: &str, member: &str) -> StickyId {
        // No part has a zero byte in it, so that no two of them can be taken for others.
        let text = format!("evergate sticky\0{upstream}\0{kind}\0{member}");
        let digest = Sha256::digest(text.as_bytes());
        let mut letters = [0; LETTERS];
        // Six bits for each letter, three bytes for each four.
        for (bytes, out) in digest.chunks_exact(3).zip(letters.chunks_exact_mut(4)) {
            let bits = bytes
                .iter()
                .fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
            for (place, letter) in out.iter_mut().rev().enumerate() {
                *letter = ALPHABET[(bits >> (6 * place)) & 63];
            }
        }
        StickyId(letters)
    }

    /// The value of a cookie that may have been set here.
    pub fn read(value: &[u8]) -> Option<StickyId> {
        // Of another alphabet it is the identity of nothing.
        value.try_into().ok().map(StickyId)
    }

    fn as_str(&self) -> &str {
        // Those that were made here are letters of the alphabet.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One generation's view of it.
#[derive(Debug)]
pub(super) struct Sticky {
    spec: StickySpec,
    /// By member.
    ids: Box<[StickyId]>,
}

impl Sticky {
    pub(super) fn build(spec: &UpstreamSpec) -> Option<Sticky> {
        let targets = spec.targets.iter().map(|target| target.address.to_string());
        let targets = targets.map(|address| StickyId::of(&spec.name, "target", &address));
        let members = spec.split.iter().map(|member| &*member.upstream);
        let members = members.map(|member| StickyId::of(&spec.name, "split", member));
        Some(Sticky {
            spec: spec.sticky.clone()?,
            ids: targets.chain(members).collect(),
        })
    }

    pub(super) fn cookie(&self) -> &str {
        &self.spec.cookie
    }

    pub(super) fn member(&self, id: StickyId) -> Option<usize> {
        self.ids.iter().position(|known| *known == id)
    }

    /// What to set for a client that came with `had` and is now with `member`; `None` if that is right already.
    pub(super) fn set_cookie(
        &self,
        member: usize,
        had: Option<StickyId>,
        secure: bool,
    ) -> Option<HeaderValue> {
        let id = *self.ids.get(member)?;
        if had == Some(id) {
            return None;
        }
        let StickySpec {
            cookie,
            max_age,
            same_site,
        } = &self.spec;
        let mut text = format!("{cookie}={}; Path=/; HttpOnly", id.as_str());
        if let Some(age) = max_age {
            text += &format!("; Max-Age={}", age.as_secs().max(1));
        }
        text += match same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::Strict => "; SameSite=Strict",
            SameSite::None => "; SameSite=None",
        };
        if secure {
            text += "; Secure";
        }
        // The name is a token and all else is ours.
        HeaderValue::try_from(text).ok()
    }
}

impl Upstream {
    /// Name of the cookie that names a client's target; its value, read by [`StickyId::read`], goes into
    /// [`super::SendOptions::sticky`].
    pub fn sticky_cookie(&self) -> Option<&str> {
        self.sticky.as_ref().map(Sticky::cookie)
    }

    /// What to set on the answer of `target` when the client came with `had`; `None` if that is right already.
    pub fn set_cookie(
        &self,
        target: &Target,
        had: Option<StickyId>,
        secure: bool,
    ) -> Option<HeaderValue> {
        let sticky = self.sticky.as_ref()?;
        let of = |member: &super::Member| std::ptr::eq(&*member.target, target);
        sticky.set_cookie(self.members.iter().position(of)?, had, secure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_the_same_in_every_process() {
        // The first 96 bits of the digest in base64url. Another value would part every client from its target.
        let id = StickyId::of("app", "target", "10.0.0.1:80");
        assert_eq!(id.as_str(), "tCmVbgxs9USybw8p");
        assert_eq!(StickyId::read(id.as_str().as_bytes()), Some(id));
        assert_ne!(id, StickyId::of("app", "split", "10.0.0.1:80"));
        assert_ne!(id, StickyId::of("app2", "target", "10.0.0.1:80"));
        for wrong in ["", "abc", "00000000000000000"] {
            assert_eq!(StickyId::read(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
