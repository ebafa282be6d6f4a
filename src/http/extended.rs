//! Extended CONNECT (RFC 8441): how a client asks for a websocket on an HTTP/2 stream. From admission on it is the `GET`
//! that it would be over HTTP/1, so that routes and filters see one kind of handshake; only who answers it must know
//! that there is no `101` here, and that `200` means "agreed" and nothing else.

use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::body::ResponseBody;
use super::error;
use crate::upstream::error::Error;

/// The stream's bytes, once the answer has left.
#[derive(Debug)]
pub struct Handshake(pub OnUpgrade);

/// Marks the answer to a handshake that was agreed to.
#[derive(Debug, Clone, Copy)]
pub struct Agreed;

/// Makes a `GET` of a handshake. `None`: it is none. To be called before anything takes the extensions away.
///
/// # Errors
/// 501 for a protocol other than websocket (RFC 9220 section 3 says so for HTTP/3; RFC 8441 leaves it open).
pub fn take(parts: &mut Parts) -> Result<Option<Handshake>, Error> {
    if parts.method != Method::CONNECT || parts.version != Version::HTTP_2 {
        return Ok(None);
    }
    let Some(protocol) = parts.extensions.remove::<Protocol>() else {
        return Ok(None);
    };
    if protocol.as_str() != "websocket" {
        return Err(Error::client(
            StatusCode::NOT_IMPLEMENTED,
            "CONNECT with a protocol other than websocket",
        ));
    }
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    parts.method = Method::GET;
    Ok(upgrade.map(Handshake))
}

/// The stream of a plain CONNECT (RFC 9113 section 8.5). `None`: it is none, or not over HTTP/2.
pub fn stream(parts: &mut Parts) -> Option<OnUpgrade> {
    let plain = parts.method == Method::CONNECT && parts.version == Version::HTTP_2;
    plain.then(|| parts.extensions.remove::<OnUpgrade>())?
}

/// The answer to a handshake: a success that nobody agreed to would make the client send frames to nobody.
pub fn answer(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let agreed = response.extensions_mut().remove::<Agreed>().is_some();
    if agreed || !response.status().is_success() {
        return response;
    }
    error::plain(StatusCode::NOT_IMPLEMENTED)
}
