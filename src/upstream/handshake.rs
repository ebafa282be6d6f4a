//! The websocket handshake of RFC 6455 section 4, where one side of the proxy has it and the other does not: over HTTP/2
//! (RFC 8441 section 5) there is no key and nothing to prove.

use ::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use ::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Adds what a handshake over HTTP/1 needs beyond `Upgrade`, for a client that has none of it. Returns the key.
pub fn complete(fields: &mut HeaderMap) -> HeaderValue {
    let key = value(&STANDARD.encode(fastrand::u128(..).to_ne_bytes()));
    fields.insert(SEC_WEBSOCKET_KEY, key.clone());
    fields
        .entry(SEC_WEBSOCKET_VERSION)
        .or_insert(HeaderValue::from_static("13"));
    key
}

/// What the one who was given `key` says if it speaks websocket.
pub fn accept(key: &HeaderValue) -> HeaderValue {
    let mut digest = Sha1::new();
    digest.update(key.as_bytes().trim_ascii());
    digest.update(GUID);
    value(&STANDARD.encode(digest.finalize()))
}

/// What is wrong with the `101` to a handshake with `key` that offered neither extensions nor subprotocols (section 4.1); `None`:
/// it agrees.
pub(super) fn faults(answer: &HeaderMap, key: &HeaderValue) -> Option<String> {
    let lists = |name: &HeaderName, token: &str| {
        let values = answer.get_all(name).iter();
        let mut tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        tokens.any(|t| t.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    let one = |name: &HeaderName| {
        let mut all = answer.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    let what = if !one(&UPGRADE).is_some_and(|u| u.as_bytes().eq_ignore_ascii_case(b"websocket"))
        || !lists(&CONNECTION, "upgrade")
    {
        "switched to something other than websocket"
    } else if one(&SEC_WEBSOCKET_ACCEPT).map(|a| a.as_bytes().trim_ascii())
        != Some(accept(key).as_bytes())
    {
        "a wrong Sec-WebSocket-Accept: it did not read the handshake"
    } else if answer.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        "agreed on an extension that was not offered"
    } else if answer.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        "agreed on a subprotocol that was not offered"
    } else {
        return None;
    };
    Some(what.to_owned())
}

/// Takes away what only HTTP/1 has. Returns the client's key.
pub(super) fn strip(fields: &mut HeaderMap) -> Option<HeaderValue> {
    fields.remove(CONNECTION);
    fields.remove(UPGRADE);
    fields.remove(SEC_WEBSOCKET_ACCEPT);
    fields.remove(SEC_WEBSOCKET_KEY)
}

/// Base64 is always a valid field.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_made_up_and_taken_away_again() {
        let mut fields = HeaderMap::new();
        let ours = complete(&mut fields);
        assert_eq!(fields[SEC_WEBSOCKET_VERSION], "13");
        assert_eq!(fields[SEC_WEBSOCKET_KEY].len(), 24);
        assert_eq!(strip(&mut fields), Some(ours));
        assert_ne!(complete(&mut fields), complete(&mut fields));
    }

    #[test]
    fn an_answer_must_agree_to_what_was_asked_and_to_nothing_else() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        const RIGHT: [(&str, &str); 3] = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        let found = |fields: &[(&'static str, &'static str)]| {
            let mut answer = HeaderMap::new();
            for (name, value) in fields {
                let name = HeaderName::from_static(name);
                answer.append(name, HeaderValue::from_static(value));
            }
            faults(&answer, &key)
        };
        assert_eq!(found(&RIGHT), None);
        for (index, wrong) in [
            (0, ("upgrade", "chat")),
            (0, ("x-upgrade", "websocket")),
            (1, ("connection", "close")),
            (2, ("sec-websocket-accept", "")),
            (2, ("sec-websocket-accept", "dGhlIHNhbXBsZSBub25jZQ==")),
            (2, ("x-none", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")),
        ] {
            let mut fields = RIGHT;
            fields[index] = wrong;
            assert!(found(&fields).is_some(), "{wrong:?}");
        }
        for more in [
            ("upgrade", "websocket"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("sec-websocket-extensions", "permessage-deflate"),
            ("sec-websocket-protocol", "binary"),
        ] {
            let fields = [&RIGHT[..], &[more]].concat();
            assert!(found(&fields).is_some(), "{more:?}");
        }
    }
}
