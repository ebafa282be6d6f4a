//! The head of an answer (RFC 9112 sections 4 to 6 and 9.3).

use std::mem::MaybeUninit;

use ::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use bytes::{Bytes, BytesMut};
use httparse::{Header, ParserConfig, Status};

use super::chunked::Chunked;
use super::{FIELDS, Fault, HEAD};

/// Of an answer that is no interim one.
#[derive(Debug)]
pub(in crate::upstream) struct Head {
    pub(in crate::upstream) status: StatusCode,
    pub(in crate::upstream) version: Version,
    /// If it is not the one that the status has by the book.
    pub(in crate::upstream) reason: Option<Bytes>,
}

/// How an answer's body is framed.
#[derive(Debug)]
pub(super) enum Framing {
    /// So many bytes are still to come; without any there is no body, or it has ended.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// What there is of a head.
#[derive(Debug)]
pub(super) enum Parsed {
    Partial,
    /// 1xx, but for 101.
    Interim(StatusCode),
    Whole {
        head: Head,
        framing: Framing,
        /// The origin will take another request.
        stays: bool,
    },
}

/// Where a field lies in the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    name: (usize, usize),
    value: (usize, usize),
}

/// Reads the head that `read` begins with, and takes it from there if it is whole. `seen`: that much was looked at before.
/// `bodiless`: the request was a HEAD. `fields` are replaced by the answer's. `spans`: room that is used again.
pub(super) fn head(
    read: &mut BytesMut,
    seen: usize,
    bodiless: bool,
    fields: &mut HeaderMap,
    spans: &mut Vec<Span>,
) -> Result<Parsed, Fault> {
    // A head that comes byte by byte is not parsed anew with each of them.
    if seen > 0 && !may_be_whole(read, seen) {
        return match read.len() >= HEAD {
            true => Err(too_large()),
            false => Ok(Parsed::Partial),
        };
    }
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut response, read, &mut room);
    let size = match parsed {
        Ok(Status::Complete(size)) if size <= HEAD => size,
        Ok(Status::Partial) if read.len() < HEAD => return Ok(Parsed::Partial),
        Ok(_) => return Err(too_large()),
        Err(error) => return Err(Fault::Malformed(error.to_string())),
    };
    // A code has three digits, of which 0xx is none.
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| Fault::Malformed("no such status".to_owned()))?;
    let version = match response.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        bytes::Buf::advance(read, size);
        return Ok(Parsed::Interim(status));
    }
    let reason = response
        .reason
        .filter(|r| Some(*r) != status.canonical_reason());
    let reason = reason.map(|reason| Bytes::copy_from_slice(reason.as_bytes()));
    let start = read.as_ptr().addr();
    let within = |part: &[u8]| {
        let from = part.as_ptr().addr() - start;
        (from, from + part.len())
    };
    spans.clear();
    spans.extend(response.headers.iter().map(|field| Span {
        name: within(field.name.as_bytes()),
        value: within(field.value),
    }));
    let bytes = read.split_to(size).freeze();
    fields.clear();
    fields.reserve(spans.len());
    let mut keeping = Keeping::new(version);
    for Span { name, value } in spans.iter() {
        let name = HeaderName::from_bytes(&bytes[name.0..name.1]);
        let value = HeaderValue::from_maybe_shared(bytes.slice(value.0..value.1));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Fault::Malformed("a field that is none".to_owned()));
        };
        if name == CONNECTION {
            keeping.hear(&value);
        }
        if fields.try_append(name, value).is_err() {
            return Err(Fault::Malformed("too many fields".to_owned()));
        }
    }
    let framing = framing(status, bodiless, fields)?;
    let stays = keeping.stays()
        && !matches!(framing, Framing::UntilClose)
        && status != StatusCode::SWITCHING_PROTOCOLS
        // Of these it is not known how they understand a coding that their version does not have (RFC 9112 section 6.1).
        && (version == Version::HTTP_11 || !fields.contains_key(TRANSFER_ENCODING));
    Ok(Parsed::Whole {
        head: Head {
            status,
            version,
            reason,
        },
        framing,
        stays,
    })
}

fn too_large() -> Fault {
    Fault::Malformed(format!("a head of more than {HEAD} bytes"))
}

/// An empty line has come since `seen`.
pub(super) fn may_be_whole(bytes: &[u8], seen: usize) -> bool {
    let new = &bytes[seen.saturating_sub(3).min(bytes.len())..];
    new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// RFC 9112 section 6.3; what `exchange::ambiguous` finds is refused after this.
fn framing(status: StatusCode, bodiless: bool, fields: &HeaderMap) -> Result<Framing, Fault> {
    if bodiless
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || status == StatusCode::SWITCHING_PROTOCOLS
    {
        return Ok(Framing::Length(0));
    }
    if let Some(coding) = fields.get_all(TRANSFER_ENCODING).iter().next_back() {
        let last = coding.as_bytes().rsplit(|byte| *byte == b',').next();
        let last = last.unwrap_or_default().trim_ascii();
        return Ok(match last.eq_ignore_ascii_case(b"chunked") {
            true => Framing::Chunked(Chunked::default()),
            false => Framing::UntilClose,
        });
    }
    let mut length = None;
    for line in fields.get_all(CONTENT_LENGTH) {
        for said in line.as_bytes().split(|byte| *byte == b',') {
            let said = digits(said.trim_ascii());
            if said.is_none() || length.is_some_and(|length| Some(length) != said) {
                return Err(Fault::Malformed("no clear Content-Length".to_owned()));
            }
            length = said;
        }
    }
    Ok(length.map_or(Framing::UntilClose, Framing::Length))
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a connection outlives its answer (RFC 9112 section 9.3).
struct Keeping {
    close: bool,
    keep: bool,
}

impl Keeping {
    fn new(version: Version) -> Keeping {
        Keeping {
            close: false,
            keep: version == Version::HTTP_11,
        }
    }

    fn hear(&mut self, value: &HeaderValue) {
        for token in value.as_bytes().split(|byte| *byte == b',') {
            let token = token.trim_ascii();
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn stays(&self) -> bool {
        self.keep && !self.close
    }
}
