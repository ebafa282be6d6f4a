//! Where somebody may go. The first rule that matches decides; after them come the denied destinations. What is denied by
//! default is asked in any case, unless what lets the destination through names it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Ask;
use super::target::forms;
use crate::config::forward::{Decision, ForwardSpec, Pattern, Place, RuleSpec};

/// What becomes of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// A rule, or `destinations.deny`, says so.
    Denied,
    /// It is denied by default.
    Prohibited,
}

/// The rules of one proxy.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<RuleSpec>,
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
    own: Vec<SocketAddr>,
}

/// The port for which no proxy is used by anyone but senders of spam.
const MAIL: u16 = 25;

/// Ranges that lead to this machine or its neighbourhood, or to many: 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4,
/// 255.255.255.255.
const DENIED_V4: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::BROADCAST, 32),
];
/// The same of IPv6, with the metadata service that some clouds have at a local address.
const DENIED_V6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::UNSPECIFIED, 128),
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
];

impl Rules {
    pub(super) fn new(spec: &ForwardSpec) -> Rules {
        Rules {
            rules: spec.rules.clone(),
            allow: spec.allow.clone(),
            deny: spec.deny.clone(),
            own: spec.own.clone(),
        }
    }

    /// What can be said of a name before it is looked up; `None`: it depends on its addresses.
    pub(super) fn judge_name(&self, ask: &Ask<'_>, name: &str, port: u16) -> Option<Verdict> {
        for rule in self.rules.iter().filter(|rule| is_for(rule, ask)) {
            let matches = rule.to.is_empty() || rule.to.iter().any(|p| takes_name(p, name, port));
            // A range might take what is found.
            let may = rule.to.iter().any(|p| matches!(p.place, Place::Net(_)));
            match (matches, rule.decision) {
                (true, Decision::Deny) => return Some(Verdict::Denied),
                (true, Decision::Allow) => return None,
                (false, _) if may => return None,
                (false, _) => {}
            }
        }
        let denied = self.deny.iter().any(|p| takes_name(p, name, port));
        denied.then_some(Verdict::Denied)
    }

    /// Index of the rule that a name falls under, whatever its addresses are.
    pub(super) fn first_by_name(&self, ask: &Ask<'_>, name: &str, port: u16) -> Option<usize> {
        let takes = |pattern: &Pattern| takes_name(pattern, name, port);
        let matches = |rule: &RuleSpec| rule.to.is_empty() || rule.to.iter().any(takes);
        let mut rules = self.rules.iter();
        rules.position(|rule| is_for(rule, ask) && matches(rule))
    }

    /// Index of the rule that an address falls under, with the name for which it was found.
    pub(super) fn first(&self, ask: &Ask<'_>, name: Option<&str>, to: SocketAddr) -> Option<usize> {
        let takes = |pattern: &Pattern| takes(pattern, name, to);
        let matches = |rule: &RuleSpec| rule.to.is_empty() || rule.to.iter().any(takes);
        let mut rules = self.rules.iter();
        rules.position(|rule| is_for(rule, ask) && matches(rule))
    }

    /// Judges a name that nobody looks up here: ranges say nothing of it.
    pub(super) fn judge_by_name(&self, ask: &Ask<'_>, name: &str, port: u16) -> Verdict {
        let takes = |pattern: &Pattern| takes_name(pattern, name, port);
        let rule = self.first_by_name(ask, name, port);
        let rule = rule.and_then(|index| self.rules.get(index));
        let lifting = match rule.map(|rule| (rule.decision, rule)) {
            Some((Decision::Deny, _)) => return Verdict::Denied,
            Some((Decision::Allow, rule)) => &rule.to[..],
            None if self.deny.iter().any(takes) => return Verdict::Denied,
            None => &[],
        };
        let mut lifting = self.allow.iter().chain(lifting);
        match port == MAIL && !lifting.any(|p| takes(p) && p.port == Some(MAIL)) {
            true => Verdict::Prohibited,
            false => Verdict::Allowed,
        }
    }

    /// Judges an address, with the name for which it was found.
    pub(super) fn judge(&self, ask: &Ask<'_>, name: Option<&str>, to: SocketAddr) -> Verdict {
        let takes = |pattern: &Pattern| takes(pattern, name, to);
        let rule = self.first(ask, name, to);
        let rule = rule.and_then(|index| self.rules.get(index));
        let lifting = match rule.map(|rule| (rule.decision, rule)) {
            Some((Decision::Deny, _)) => return Verdict::Denied,
            Some((Decision::Allow, rule)) => &rule.to[..],
            None if self.deny.iter().any(takes) => return Verdict::Denied,
            None => &[],
        };
        let mut lifting = self.allow.iter().chain(lifting);
        match self.is_prohibited(name, to, &mut lifting) {
            true => Verdict::Prohibited,
            false => Verdict::Allowed,
        }
    }

    /// Whether a default denial stands that nothing in `lifting` names.
    fn is_prohibited(
        &self,
        name: Option<&str>,
        to: SocketAddr,
        lifting: &mut dyn Iterator<Item = &Pattern>,
    ) -> bool {
        let (ip, inner) = forms(to.ip());
        let ranges = denied(ip).or_else(|| denied(IpAddr::V4(inner?)));
        let (mut range, mut port, mut own) = (
            ranges.is_some(),
            to.port() == MAIL,
            self.own.iter().any(|own| is_own(*own, to)),
        );
        if !(range || port || own) {
            return false;
        }
        for pattern in lifting.filter(|pattern| takes(pattern, name, to)) {
            port = port && pattern.port != Some(MAIL);
            let here = match &pattern.place {
                Place::Net(net) => ranges.is_some_and(|denied| denied.contains(net)),
                // Whoever names a host means where it is, wherever that is.
                Place::Name(_) => true,
                Place::Anywhere | Place::Below(_) => false,
            };
            range = range && !here;
            // Our own addresses must be named to the last bit.
            let exact = matches!(&pattern.place, Place::Net(net) if net.prefix_len() == net.max_prefix_len());
            own = own && !(exact && pattern.port.is_some());
        }
        range || port || own
    }
}

fn is_for(rule: &RuleSpec, ask: &Ask<'_>) -> bool {
    let user = rule.users.is_empty() || ask.user.is_some_and(|user| rule.users.contains(user));
    let client = rule.clients.is_empty()
        || ask.client.is_some_and(|ip| {
            let ip = ip.to_canonical();
            rule.clients.iter().any(|net| net.contains(&ip))
        });
    user && client
}

/// Whether a pattern takes a name, whatever its addresses are.
fn takes_name(pattern: &Pattern, name: &str, port: u16) -> bool {
    let place = match &pattern.place {
        Place::Anywhere => true,
        Place::Net(_) => false,
        Place::Name(known) => **known == *name,
        Place::Below(above) => name
            .strip_suffix(&**above)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
    };
    place && pattern.port.is_none_or(|p| p == port)
}

fn takes(pattern: &Pattern, name: Option<&str>, to: SocketAddr) -> bool {
    match &pattern.place {
        Place::Net(net) => {
            let (ip, inner) = forms(to.ip());
            let inner = inner.is_some_and(|ip| net.contains(&IpAddr::V4(ip)));
            (net.contains(&ip) || inner) && pattern.port.is_none_or(|port| port == to.port())
        }
        Place::Anywhere => pattern.port.is_none_or(|port| port == to.port()),
        Place::Name(_) | Place::Below(_) => {
            name.is_some_and(|name| takes_name(pattern, name, to.port()))
        }
    }
}

/// The range that is denied by default and has this address.
fn denied(ip: IpAddr) -> Option<IpNet> {
    let v4 = |(net, bits)| Some(IpNet::V4(Ipv4Net::new(net, bits).ok()?));
    let v6 = |(net, bits)| Some(IpNet::V6(Ipv6Net::new(net, bits).ok()?));
    let mut all = DENIED_V4.into_iter().filter_map(v4);
    let mut more = DENIED_V6.into_iter().filter_map(v6);
    match ip {
        IpAddr::V4(_) => all.find(|net| net.contains(&ip)),
        IpAddr::V6(_) => more.find(|net| net.contains(&ip)),
    }
}

/// Whether `to` leads to a socket of ours that listens on `own`.
fn is_own(own: SocketAddr, to: SocketAddr) -> bool {
    if own.port() != to.port() {
        return false;
    }
    let (ip, inner) = forms(to.ip());
    let same = |ip: IpAddr| match own.ip().is_unspecified() {
        true => is_of_this_machine(ip),
        false => ip == own.ip().to_canonical(),
    };
    same(ip) || inner.is_some_and(|ip| same(IpAddr::V4(ip)))
}

/// Whether an address is one of this machine's: the kernel sends from there what it sends to there. Nothing is sent.
fn is_of_this_machine(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let any: SocketAddr = match ip {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let from = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect((ip, 9))?;
        socket.local_addr()
    };
    from().is_ok_and(|from| from.ip() == ip)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::forward::Way;
    use crate::forward::Destination;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|t| Pattern::parse(t).unwrap()).collect()
    }

    fn rules(allow: &[&str], deny: &[&str]) -> Rules {
        Rules {
            rules: Vec::new(),
            allow: patterns(allow),
            deny: patterns(deny),
            own: vec!["127.0.0.1:8837".parse().unwrap()],
        }
    }

    fn rule(users: &[&str], to: &[&str], decision: Decision) -> RuleSpec {
        RuleSpec {
            users: users.iter().map(|u| Arc::from(*u)).collect(),
            clients: Vec::new(),
            to: patterns(to),
            decision,
            way: Way::Usual,
        }
    }

    fn judge(rules: &Rules, user: Option<&str>, name: Option<&str>, to: &str) -> Verdict {
        let to: SocketAddr = to.parse().unwrap();
        let destination = Destination::Address(to);
        let user: Option<Arc<str>> = user.map(Arc::from);
        let ask = Ask {
            user: user.as_ref(),
            client: None,
            destination: &destination,
        };
        rules.judge(&ask, name, to)
    }

    #[test]
    fn what_leads_here_is_denied_in_every_form() {
        let rules = rules(&[], &[]);
        for to in [
            "127.0.0.1:80",
            "127.255.0.9:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "169.254.169.254:80",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
            "[::127.0.0.1]:80",
            "[64:ff9b::127.0.0.1]:80",
            "[2002:7f00:1::]:80",
            "[fe80::1]:80",
            "[febf::1]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[ff02::1]:80",
            "[fd00:ec2::254]:80",
            "192.0.2.1:25",
        ] {
            assert_eq!(judge(&rules, None, None, to), Verdict::Prohibited, "{to}");
        }
        for to in [
            "192.0.2.1:80",
            "10.0.0.1:80",
            "[2001:db8::1]:80",
            "[fec0::1]:26",
        ] {
            assert_eq!(judge(&rules, None, None, to), Verdict::Allowed, "{to}");
        }
    }

    #[test]
    fn only_what_is_named_is_lifted() {
        for (allow, name, to, allowed) in [
            ("127.0.0.0/8", None, "127.0.0.1:80", true),
            ("127.0.0.0/8", None, "[::ffff:127.0.0.1]:80", true),
            ("127.0.0.0/8", None, "[::1]:80", false),
            ("127.0.0.1", None, "127.0.0.2:80", false),
            ("127.0.0.1:81", None, "127.0.0.1:80", false),
            ("0.0.0.0/0", None, "127.0.0.1:80", false),
            ("*", None, "127.0.0.1:80", false),
            ("localhost", Some("localhost"), "127.0.0.1:80", true),
            ("localhost", None, "127.0.0.1:80", false),
            ("*.example", Some("a.example"), "127.0.0.1:80", false),
            ("127.0.0.0/8", None, "127.0.0.1:8837", false),
            ("localhost", Some("localhost"), "127.0.0.1:8837", false),
            (":8837", None, "127.0.0.1:8837", false),
            ("127.0.0.1:8837", None, "127.0.0.1:8837", true),
            (":25", None, "192.0.2.1:25", true),
            (":25", None, "127.0.0.1:25", false),
            ("192.0.2.1", None, "192.0.2.1:25", false),
            ("192.0.2.1:25", None, "192.0.2.1:25", true),
            (
                "mail.example:25",
                Some("mail.example"),
                "192.0.2.1:25",
                true,
            ),
        ] {
            let verdict = judge(&rules(&[allow], &[]), None, name, to);
            assert_eq!(verdict == Verdict::Allowed, allowed, "{allow} {to}");
        }
        let both = rules(&["127.0.0.1"], &["127.0.0.0/8"]);
        assert_eq!(judge(&both, None, None, "127.0.0.1:80"), Verdict::Denied);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let mut rules = rules(&[], &["*.ads.example", "198.51.100.0/24"]);
        rules.rules = vec![
            rule(
                &["ci"],
                &["*.github.com:443", "127.0.0.1:81"],
                Decision::Allow,
            ),
            rule(&["ci"], &[], Decision::Deny),
            rule(&["root"], &[], Decision::Allow),
        ];
        let to = "192.0.2.1:443";
        for (user, name, to, verdict) in [
            (Some("ci"), Some("api.github.com"), to, Verdict::Allowed),
            (Some("ci"), Some("github.com"), to, Verdict::Denied),
            (Some("ci"), Some("evilgithub.com"), to, Verdict::Denied),
            (
                Some("ci"),
                Some("a.github.com"),
                "127.0.0.1:443",
                Verdict::Prohibited,
            ),
            (Some("ci"), None, "127.0.0.1:81", Verdict::Allowed),
            (Some("root"), Some("x.ads.example"), to, Verdict::Allowed),
            (Some("root"), None, "127.0.0.1:81", Verdict::Prohibited),
            (None, Some("x.ads.example"), to, Verdict::Denied),
            (None, None, "198.51.100.7:1", Verdict::Denied),
            (None, None, "[::ffff:198.51.100.7]:1", Verdict::Denied),
            (None, Some("x.example"), to, Verdict::Allowed),
        ] {
            assert_eq!(
                judge(&rules, user, name, to),
                verdict,
                "{user:?} {name:?} {to}"
            );
        }
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        let place = prop_oneof![
            Just("*".to_owned()),
            (0..4u8, 0..=32u8).prop_map(|(a, bits)| format!("127.0.{a}.0/{bits}")),
            "[ab](\\.[ab]){0,2}",
            "\\*\\.[ab](\\.[ab]){0,1}",
        ];
        (place, prop::option::of(1..4u16)).prop_map(|(place, port)| {
            let text = match port {
                Some(port) => format!("{place}:{port}"),
                None => place,
            };
            Pattern::parse(&text).unwrap()
        })
    }

    /// As one would say it, label by label and bit by bit.
    fn naive(pattern: &Pattern, name: Option<&str>, ip: Ipv4Addr, port: u16) -> bool {
        let labels = |text: &str| -> Vec<String> { text.rsplit('.').map(String::from).collect() };
        let place = match &pattern.place {
            Place::Anywhere => true,
            Place::Net(IpNet::V4(net)) => (0..net.prefix_len()).all(|bit| {
                let at = |ip: Ipv4Addr| u32::from(ip) >> (31 - bit) & 1;
                at(net.addr()) == at(ip)
            }),
            Place::Net(IpNet::V6(_)) => false,
            Place::Name(known) => name.is_some_and(|name| labels(name) == labels(known)),
            Place::Below(above) => name.is_some_and(|name| {
                let (name, above) = (labels(name), labels(above));
                name.len() > above.len() && name[..above.len()] == above[..]
            }),
        };
        place && (pattern.port.is_none() || pattern.port == Some(port))
    }

    proptest! {
        #[test]
        fn patterns_take_what_a_naive_matcher_takes(
            pattern in any_pattern(),
            name in prop::option::of("[ab](\\.[ab]){0,3}"),
            ip in (0..4u8, 0..4u8).prop_map(|(a, b)| Ipv4Addr::new(127, 0, a, b)),
            port in 1..4u16,
            mapped in any::<bool>(),
        ) {
            let to = match mapped {
                true => SocketAddr::from((ip.to_ipv6_mapped(), port)),
                false => SocketAddr::from((ip, port)),
            };
            prop_assert_eq!(
                takes(&pattern, name.as_deref(), to),
                naive(&pattern, name.as_deref(), ip, port)
            );
        }

        #[test]
        fn the_decision_is_the_naive_one(
            to_rules in prop::collection::vec((prop::collection::vec(any_pattern(), 0..3), any::<bool>()), 0..4),
            deny in prop::collection::vec(any_pattern(), 0..3),
            name in prop::option::of("[ab](\\.[ab]){0,3}"),
            last in any::<u8>(),
            port in 1..4u16,
        ) {
            // Nothing here is denied by default.
            let ip = Ipv4Addr::new(192, 0, 2, last);
            let mut rules = rules(&[], &[]);
            rules.deny = deny.clone();
            rules.rules = to_rules.iter().map(|(to, allow)| RuleSpec {
                users: Vec::new(),
                clients: Vec::new(),
                to: to.clone(),
                way: Way::Usual,
                decision: if *allow { Decision::Allow } else { Decision::Deny },
            }).collect();
            let takes = |p: &Pattern| naive(p, name.as_deref(), ip, port);
            let first = to_rules.iter().find(|(to, _)| to.is_empty() || to.iter().any(takes));
            let allowed = match first {
                Some((_, allow)) => *allow,
                None => !deny.iter().any(takes),
            };
            let verdict = judge(&rules, None, name.as_deref(), &format!("{ip}:{port}"));
            prop_assert_eq!(verdict == Verdict::Allowed, allowed);
            if let Some(name) = &name {
                // What is said of a name beforehand holds for all its addresses.
                let destination = Destination::new(name, port).unwrap();
                let ask = Ask { user: None, client: None, destination: &destination };
                if let Some(early) = rules.judge_name(&ask, name, port) {
                    prop_assert_eq!(early, verdict);
                }
            }
        }
    }
}
