//! `allow` and `deny`: who is served at all.

use std::net::IpAddr;

use http::StatusCode;
use ipnet::IpNet;

use super::Refusal;
use crate::config::http::{AccessSpec, FiltersSpec};
use crate::http::error;

/// `deny` wins; a given `allow` refuses all the rest.
#[derive(Debug)]
pub(super) struct Access {
    allow: Option<Vec<IpNet>>,
    deny: Vec<IpNet>,
}

impl Access {
    pub(super) fn build(spec: &FiltersSpec) -> Option<Access> {
        let nets = |spec: &AccessSpec| spec.nets.clone();
        let allow = spec.allow.get().map(|spec| nets(spec));
        let deny = spec.deny.get().map(|spec| nets(spec)).unwrap_or_default();
        (allow.is_some() || !deny.is_empty()).then_some(Access { allow, deny })
    }

    /// # Errors
    /// 403. A client of a unix socket has no address: no range holds it.
    pub(super) fn admit(&self, client: Option<IpAddr>) -> Result<(), Refusal> {
        let within = |nets: &[IpNet]| client.is_some_and(|ip| nets.iter().any(|n| n.contains(&ip)));
        let refused = within(&self.deny) || self.allow.as_ref().is_some_and(|nets| !within(nets));
        if refused {
            return Err(Box::new(error::plain(StatusCode::FORBIDDEN)));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_and_allow_refuses_the_rest() {
        let nets = |all: &[&str]| all.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>();
        let access = |allow: Option<&[&str]>, deny: &[&str]| Access {
            allow: allow.map(nets),
            deny: nets(deny),
        };
        let ip = |text: &str| Some(text.parse().unwrap());
        let both = access(Some(&["10.0.0.0/8", "fd00::/8"]), &["10.1.0.0/16"]);
        assert!(both.admit(ip("10.2.0.1")).is_ok() && both.admit(ip("fd00::1")).is_ok());
        for refused in [ip("10.1.0.1"), ip("192.0.2.1"), ip("2001:db8::1"), None] {
            assert_eq!(both.admit(refused).unwrap_err().status(), 403);
        }
        let deny = access(None, &["10.1.0.0/16"]);
        assert!(deny.admit(ip("10.1.0.1")).is_err());
        assert!(deny.admit(ip("192.0.2.1")).is_ok() && deny.admit(None).is_ok());
    }
}
