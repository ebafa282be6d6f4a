//! The websocket handshake of RFC 6455 section 4, where one side of the proxy has it and the other does not: over HTTP/2
//! (RFC 8441 section 5) there is no key and nothing to prove.

use ::http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use ::http::{HeaderMap, HeaderValue};
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
}
