//! A proxy's URL, and how one with user and password in it is read: they are taken out, so that a password is a secret wherever
//! it stands.

use std::borrow::Cow;
use std::path::Path;

use percent_encoding::percent_decode_str;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};

use super::super::check::shorten;
use super::super::decode::{Decode, Loc};
use super::super::findings::Findings;
use super::super::scalar::{REDACTED, Secret, SecretRef, TargetAddr, Wrong};
use super::super::tree::Node;
use super::{HopFields, HopProtocol, HopRaw};

/// Protocol and address of `scheme://host[:port]`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse_url(text: &str, base: &Path) -> Result<(HopProtocol, TargetAddr), Wrong> {
    let help = "such as `http://proxy.example:3128`, `https://`, `socks5://` or `socks5h://`";
    let wrong = |message: String| Wrong::new(message).help(help);
    let Some((scheme, rest)) = text.split_once("://") else {
        let message = match text {
            "direct" => "`direct` stands alone".to_owned(),
            _ => format!("`{}` is no URL of a proxy", shorten(text)),
        };
        return Err(wrong(message));
    };
    let protocol = match scheme {
        "http" => HopProtocol::Http,
        "https" => HopProtocol::Https,
        "socks5" => HopProtocol::Socks5,
        "socks5h" => HopProtocol::Socks5h,
        other => {
            return Err(wrong(format!(
                "`{}://` is no proxy's scheme",
                shorten(other)
            )));
        }
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(wrong(
            "the URL of a proxy is no more than host and port".to_owned(),
        ));
    }
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    let address = match has_port {
        true => TargetAddr::parse(authority, base),
        false => TargetAddr::parse(&format!("{authority}:{}", protocol.default_port()), base),
    };
    match address? {
        address @ (TargetAddr::Ip(_) | TargetAddr::Name(..)) => Ok((protocol, address)),
        other => Err(wrong(format!("`{other}` is not `host:port`"))),
    }
}

impl Decode for HopRaw {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        let mut fields = HopFields::decode(node, findings)?;
        let Some(url) = &mut fields.url else {
            return Some(HopRaw(fields));
        };
        let (scheme, authority) = url.value.split_once("://").unwrap_or(("", ""));
        let Some((login, host)) = authority.rsplit_once('@') else {
            return Some(HopRaw(fields));
        };
        let at = url.at;
        let decoded = |text: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .ok()
                .map(Cow::into_owned)
        };
        let parts = login.split_once(':');
        let parts = parts.and_then(|(user, password)| decoded(user).zip(decoded(password)));
        url.value = format!("{scheme}://{host}");
        let Some((user, password)) = parts.filter(|(_, password)| !password.is_empty()) else {
            let finding = findings.error(
                at,
                "before the `@` of a proxy's URL stand a user and a password",
            );
            finding.help("`user:password@`, with what is special in a URL percent-encoded");
            return None;
        };
        if fields.user.is_some() || fields.password.is_some() {
            findings.error(at, "user and password are in the URL, and beside it");
            return None;
        }
        let password = match password {
            text if text == REDACTED => SecretRef::Redacted,
            text => {
                let secret = Secret::new(text);
                findings.literal_secret(at, &secret);
                SecretRef::Literal(secret)
            }
        };
        fields.user = Some(Loc { value: user, at });
        fields.password = Some(Loc {
            value: password,
            at,
        });
        Some(HopRaw(fields))
    }

    fn fill(&mut self) {
        self.0.fill();
    }

    fn lay_over(&mut self, below: &Self) {
        self.0.lay_over(&below.0);
    }
}

impl Serialize for HopRaw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl JsonSchema for HopRaw {
    fn schema_name() -> Cow<'static, str> {
        "HopRaw".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        HopFields::json_schema(generator)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_url_is_a_protocol_and_an_address() {
        let parse = |text| {
            parse_url(text, Path::new("/b"))
                .map(|(p, a)| format!("{} {a}", p.word()))
                .ok()
        };
        for (text, is) in [
            ("http://Proxy.example", "http proxy.example:80"),
            ("https://[::1]/", "https [::1]:443"),
            ("socks5://10.0.0.1", "socks5 10.0.0.1:1080"),
            ("socks5h://a:1", "socks5h a:1"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(is));
        }
        for wrong in [
            "a:1",
            "direct",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://u:p@a",
            "http://tunnel:a/b",
            "http://a:0",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
