//! The words that the two ends of a tunnel exchange, as bytes and back. Nothing here waits or decides.
//!
//! A connection begins with three messages, each a length (32 bits, big endian) and JSON: the server's [`Challenge`], the
//! agent's [`Hello`], the server's [`Verdict`]. Then it is HTTP/2 with the roles reversed: the agent, which dialled, serves.
//! The server's first request is `POST /control`, whose bodies are such messages both ways ([`FromAgent`], [`FromServer`])
//! for as long as the session lives; each later `POST /flow` is one connection to a service. Where that is to have a connection
//! of its own, the agent makes one, which begins with the same three messages; then it is the flow's bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of all this. It is part of what is proved, so that nobody can talk two ends down to an older one.
pub const VERSION: u8 = 1;
/// Bytes of a message before anybody is known.
pub const MAX_GREETING: usize = 16 * 1024;
/// Bytes of a message between two that know each other: room for some thousand services.
pub const MAX_CONTROL: usize = 1024 * 1024;

/// What a request is for.
pub const CONTROL: &str = "/control";
pub const FLOW: &str = "/flow";

/// Fields of a flow's request: which service, whose connection, and to where.
pub const SERVICE: &str = "service";
pub const CLIENT: &str = "client";
pub const LOCAL: &str = "local";
/// What the flow's bytes are, for a service with which the agent speaks TLS: [`HTTP_1`] or [`HTTP_2`]. Absent: they are passed
/// on as they are.
pub const SPEAKS: &str = "speaks";
pub const HTTP_1: &str = "h1";
pub const HTTP_2: &str = "h2";
/// The flow is to have a connection of its own, which the agent makes with this ([`Hello::ticket`]).
pub const TICKET: &str = "ticket";
/// Fields of its answer: why there is none.
pub const REASON: &str = "reason";
pub const DETAIL: &str = "detail";

/// The server's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// What tells it from anything else that talks first.
    pub evergate: String,
    pub version: u8,
    /// 32 bytes in hexadecimal, never the same twice.
    pub nonce: String,
}

/// Who the agent is, and its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u8,
    pub agent: String,
    /// In hexadecimal; `None`: a certificate says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// The agent's program.
    pub program: String,
    /// The same for all sessions of one agent in one process: another one has taken its place, perhaps while the server does
    /// not know yet that the first is gone.
    pub instance: String,
    pub services: Vec<Service>,
    /// It comes for a flow, and nothing else: after the server's verdict the connection is that flow's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// A service, as the agent declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// `http`, `https`, `tcp` or `udp`; the server refuses what it does not know.
    pub kind: String,
    /// Says nothing but whether it is the same as before: connections that are kept open to it end when it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Each of its flows has a connection of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dedicated: bool,
}

/// What the server makes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    Welcome {
        /// What both sides call this session.
        session: String,
        /// That the server knows the secret too, in hexadecimal; absent where a certificate stood for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<String>,
    },
    Refused {
        reason: Refusal,
        /// A sentence for people.
        detail: String,
    },
}

/// Why an agent is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No such agent, a wrong secret or a certificate with another name: the server does not say which.
    Unauthorized,
    /// It has as many sessions as it may have.
    TooMany,
    Version,
    /// Nobody waits for the flow that it came for.
    Ticket,
    /// The tunnel is being taken down.
    Stopping,
    #[serde(other)]
    Other,
}

/// What an agent says during a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub enum FromAgent {
    /// All its services from now on.
    Services { services: Vec<Service> },
    /// No new flows on this session, please: another takes its place, or the agent stops.
    Drain,
    /// From a newer one.
    #[serde(other)]
    Unknown,
}

/// What a server says during a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub enum FromServer {
    /// What it makes of the services: those that are not granted, each with the reason.
    Judged { refused: Vec<Refused> },
    /// Make another session: this one ends when its flows have.
    Drain,
    /// From a newer one.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub service: String,
    pub why: String,
}

/// What is wrong with the bytes that came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("a message of {0} bytes")]
    TooLong(usize),
    #[error("not a message of a tunnel: {0}")]
    Malformed(String),
}

/// A message with its length in front.
pub fn encode(message: &impl Serialize) -> Bytes {
    // Fails for maps with keys that are no strings, of which there are none.
    let json = serde_json::to_vec(message).unwrap_or_default();
    let mut out = BytesMut::with_capacity(4 + json.len());
    out.put_u32(u32::try_from(json.len()).unwrap_or(u32::MAX));
    out.put_slice(&json);
    out.freeze()
}

/// The length that a message begins with.
///
/// # Errors
/// When it has more than `max` bytes.
pub fn length(head: [u8; 4], max: usize) -> Result<usize, Wrong> {
    let length = u32::from_be_bytes(head) as usize;
    (length <= max)
        .then_some(length)
        .ok_or(Wrong::TooLong(length))
}

/// A message without its length.
///
/// # Errors
/// When it is none.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, Wrong> {
    serde_json::from_slice(json).map_err(|error| Wrong::Malformed(error.to_string()))
}

/// Takes the first whole message off `buffer`.
///
/// # Errors
/// When it is longer than `max` bytes, or none.
pub fn take<T: DeserializeOwned>(buffer: &mut BytesMut, max: usize) -> Result<Option<T>, Wrong> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = length(*head, max)?;
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    decode(&buffer.split_to(length)).map(Some)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(agent: String) -> Hello {
        Hello {
            version: VERSION,
            agent,
            proof: Some("00".into()),
            program: "evergate/0".into(),
            instance: "i".into(),
            services: vec![Service {
                name: "ssh".into(),
                kind: "tcp".into(),
                revision: "1".into(),
                dedicated: false,
            }],
            ticket: None,
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(
            names in proptest::collection::vec(".{0,40}", 1..4),
            cut in 1usize..50,
        ) {
            let whole: Vec<u8> = names.iter().flat_map(|n| encode(&hello(n.clone()))).collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in whole.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(hello) = take::<Hello>(&mut buffer, MAX_GREETING).unwrap() {
                    got.push(hello.agent);
                }
            }
            prop_assert_eq!(got, names);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let _ = take::<FromAgent>(&mut buffer, MAX_CONTROL);
            let _ = take::<Verdict>(&mut BytesMut::from(&bytes[..]), MAX_GREETING);
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_not_waited_for() {
        let mut buffer = BytesMut::from(&b"GET / HTTP/1.1"[..]);
        let wrong = take::<Hello>(&mut buffer, MAX_GREETING).unwrap_err();
        assert!(matches!(wrong, Wrong::TooLong(_)));
    }

    #[test]
    fn words_of_a_newer_version_are_known_to_be_unknown() {
        let said: FromServer = decode(br#"{"say":"sing","song":1}"#).unwrap();
        assert_eq!(said, FromServer::Unknown);
        let refused: Verdict =
            decode(br#"{"verdict":"refused","reason":"moon","detail":"d"}"#).unwrap();
        assert!(matches!(
            refused,
            Verdict::Refused {
                reason: Refusal::Other,
                ..
            }
        ));
    }
}
