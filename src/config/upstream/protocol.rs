//! `protocol` of an upstream: what its targets speak.

use super::super::decode::words;

/// What the targets of an upstream speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, in cleartext or over TLS.
    Http1,
    /// HTTP/2 in cleartext, with prior knowledge (RFC 9113 section 3.3).
    H2c,
    /// HTTP/2 over TLS, and nothing else.
    H2,
    /// Over TLS what the target chooses by ALPN, connection by connection; HTTP/1.1 in cleartext.
    Auto,
}

words!(Protocol {
    "h1" => Protocol::Http1,
    "http1" => Protocol::Http1,
    "h2c" => Protocol::H2c,
    "h2" => Protocol::H2,
    "auto" => Protocol::Auto,
});
