//! A cookie that keeps a client with its target. It holds a keyed hash of the target's address: it says nothing of the
//! address, and nobody can make one up. The key is the process's: cookies hold over swaps, not over restarts.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use ::http::HeaderValue;

use super::{Shared, Target, TargetKey, Upstream};
use crate::config::upstream::{SameSite, StickySpec, UpstreamSpec};

/// What makes the hashes secret; one per process.
#[derive(Default)]
pub(super) struct Secret(RandomState);

impl Secret {
    fn id(&self, key: &TargetKey) -> u64 {
        self.0.hash_one(key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// One generation's view of it.
#[derive(Debug)]
pub(super) struct Sticky {
    spec: StickySpec,
    /// By member.
    ids: Box<[u64]>,
}

impl Sticky {
    pub(super) fn build(spec: &UpstreamSpec, shared: &Shared) -> Option<Sticky> {
        let id = |target: &crate::config::upstream::TargetSpec| {
            shared
                .secret
                .id(&(spec.name.clone(), target.address.clone()))
        };
        Some(Sticky {
            spec: spec.sticky.clone()?,
            ids: spec.targets.iter().map(id).collect(),
        })
    }

    pub(super) fn member(&self, id: u64) -> Option<usize> {
        self.ids.iter().position(|known| *known == id)
    }
}

impl Upstream {
    /// Name of the cookie that names a client's target; its value, read by [`sticky_id`], goes into
    /// [`super::SendOptions::sticky`].
    pub fn sticky_cookie(&self) -> Option<&str> {
        self.sticky.as_ref().map(|s| s.spec.cookie.as_str())
    }

    /// What to set on the answer of `target` when the client came with `had`; `None` if that is right already.
    pub fn set_cookie(
        &self,
        target: &Target,
        had: Option<u64>,
        secure: bool,
    ) -> Option<HeaderValue> {
        let sticky = self.sticky.as_ref()?;
        let of = |member: &super::Member| std::ptr::eq(&*member.target, target);
        let id = *sticky.ids.get(self.members.iter().position(of)?)?;
        if had == Some(id) {
            return None;
        }
        let StickySpec {
            cookie,
            max_age,
            same_site,
        } = &sticky.spec;
        let mut text = format!("{cookie}={id:016x}; Path=/; HttpOnly");
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

/// The value of a cookie that was set here; anything else is nobody's.
pub fn sticky_id(value: &[u8]) -> Option<u64> {
    let fits = value.len() == 16 && value.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(value).ok().filter(|_| fits)?;
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_form_is_read() {
        assert_eq!(sticky_id(b"00000000000000ff"), Some(255));
        for wrong in [
            "",
            "ff",
            "+0000000000000ff",
            "00000000000000fg",
            "00000000000000ff0",
        ] {
            assert_eq!(sticky_id(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
