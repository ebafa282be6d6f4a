//! Whole answers read in pieces: what `scripts/fuzz` and the tests ask of those who read them.

use ::http::HeaderMap;
use bytes::{Bytes, BytesMut};

use super::chunked::Piece;
use super::decode::{self, Framing, Parsed};
use super::{FIELDS, HEAD};

/// Status, whether the connection stays, the body, the trailers, and what is left.
pub(super) type Whole = (u16, bool, Vec<u8>, Option<HeaderMap>, Vec<u8>);

/// Reads one answer that comes in pieces of `cut` bytes. `None`: it is not whole; the error is what was wrong with it.
pub(super) fn read(bytes: &[u8], cut: usize, bodiless: bool) -> Result<Option<Whole>, String> {
    let (mut read, mut fields, mut spans) = (BytesMut::new(), HeaderMap::new(), Vec::new());
    let mut pieces = bytes.chunks(cut.max(1));
    let mut seen = 0;
    let (head, mut framing, stays) = loop {
        if read.len() > seen {
            match decode::head(&mut read, seen, bodiless, &mut fields, &mut spans) {
                Ok(Parsed::Partial) => seen = read.len(),
                Ok(Parsed::Interim(status)) => {
                    assert!(status.is_informational() && status != 101);
                    seen = 0;
                    continue;
                }
                Ok(Parsed::Whole {
                    head,
                    framing,
                    stays,
                }) => break (head, framing, stays),
                Err(fault) => return Err(fault.to_string()),
            }
        }
        match pieces.next() {
            Some(piece) => read.extend_from_slice(piece),
            None => return Ok(None),
        }
    };
    assert!(fields.len() <= FIELDS && read.len() <= bytes.len());
    let (mut body, mut trailers) = (Vec::new(), None);
    loop {
        match &mut framing {
            Framing::Length(0) => break,
            Framing::Length(rest) => {
                let size = read.len().min(usize::try_from(*rest).unwrap_or(usize::MAX));
                body.extend_from_slice(&read.split_to(size));
                *rest -= size as u64;
                if *rest == 0 {
                    break;
                }
            }
            Framing::UntilClose => body.extend_from_slice(&read.split()),
            Framing::Chunked(chunked) => match chunked.next(&mut read) {
                Ok(Some(Piece::Data(data))) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                    if chunked.end_at_hand(&mut read) {
                        break;
                    }
                    continue;
                }
                Ok(Some(Piece::Trailers(fields))) => {
                    trailers = Some(fields);
                    break;
                }
                Ok(Some(Piece::End)) => break,
                Ok(None) => {}
                Err(fault) => return Err(fault.to_string()),
            },
        }
        match (pieces.next(), &framing) {
            (Some(piece), _) => read.extend_from_slice(piece),
            (None, Framing::UntilClose) => break,
            (None, _) => return Ok(None),
        }
    }
    let rest: Vec<&[u8]> = pieces.collect();
    let rest = [Bytes::from(read).as_ref(), &rest.concat()].concat();
    Ok(Some((head.status.as_u16(), stays, body, trailers, rest)))
}

/// An answer is the same however it is cut, and what is malformed is so in every cut.
pub fn answer(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let bodiless = how & 1 == 1;
    let whole = read(bytes, bytes.len(), bodiless);
    let cut = read(bytes, usize::from(how >> 1), bodiless);
    match (whole, cut) {
        // What breaks it may be told sooner or later, or after an end of input that hides it.
        (Err(_), Err(_) | Ok(None)) | (Ok(None), Err(_)) => {}
        (whole, cut) => assert_eq!(whole, cut),
    }
    assert!(bytes.len() < HEAD);
}
