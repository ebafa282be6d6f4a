//! `files`: a folder that is served. Nothing outside of the root is ever opened, nothing that could block is waited for
//! by a worker's thread, and a download ends whole or visibly cut.
//!
//! A request is looked up twice at most: from the kernel's memory on the worker's thread, where a small file's contents
//! are then in [`cache`]; else on a thread that may block. Both run the same code, so both give the same answer.

pub mod body;
mod cache;
mod conditional;
mod find;
#[cfg(fuzzing)]
pub mod fuzzing;
mod listing;
pub(in crate::http) mod negotiate;
#[cfg_attr(not(unix), path = "open_portable.rs")]
mod open;
mod path;
mod range;
mod stat;
mod threads;

use std::borrow::Cow;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::config::http::FilesSpec;
use crate::config::template::{Source, Var};
use crate::generation::Flight;
use crate::http::body::{Content, ResponseBody};
use crate::http::error;
use crate::http::path::Path;
use crate::http::vars::Vars;
use crate::upstream::error::{Error, Kind as ErrorKind};
use body::{FileBody, Part};
use conditional::Verdict;
use find::{Found, FoundFile, Wanted, may_have_siblings};
use open::How;
use stat::{Stat, Validators};

/// Times a small file is read again because it was being written.
const READS: usize = 3;

const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// `files`.
#[derive(Debug)]
pub struct StaticFiles {
    spec: Arc<FilesSpec>,
}

impl StaticFiles {
    pub fn build(spec: &FilesSpec) -> StaticFiles {
        StaticFiles {
            spec: Arc::new(spec.clone()),
        }
    }

    /// Answers a request. Given up at the drain deadline if the flight's definition is gone.
    ///
    /// # Errors
    /// What is neither the client's doing nor an answer: the disk, the number of descriptors.
    pub async fn respond(
        &self,
        vars: &Vars<'_>,
        flight: &Flight,
    ) -> Result<Response<ResponseBody>, Error> {
        let mut answering = pin!(self.answer(vars));
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                return Poll::Ready(answer.map_err(|error| failure(&error)));
            }
            flight.poll_cut(cx).map(|()| {
                Err(Error::us(
                    ErrorKind::DestinationUnavailable,
                    "cut at the drain deadline of its generation",
                ))
            })
        })
        .await
    }

    async fn answer(&self, vars: &Vars<'_>) -> io::Result<Response<ResponseBody>> {
        let method = &vars.parts.method;
        if *method == Method::OPTIONS {
            let mut response = empty(StatusCode::NO_CONTENT);
            response.headers_mut().insert(ALLOW, ALLOWED);
            return Ok(response);
        }
        if *method != Method::GET && *method != Method::HEAD {
            let mut response = error::plain(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(ALLOW, ALLOWED);
            return Ok(response);
        }
        let Some(mut wanted) = self.wanted(vars, "") else {
            return Ok(error::plain(StatusCode::NOT_FOUND));
        };
        let mut reads = 0;
        loop {
            let found = self.look(&wanted).await?;
            match found {
                // What stands there is a folder, whose relative links need the slash.
                Found::File(_) | Found::Folder(..) if vars.context.slashless => {
                    return Ok(with_slash(vars));
                }
                Found::File(file) => {
                    if let Some(response) = self.file(file, vars, reads + 1 == READS).await? {
                        return Ok(response);
                    }
                    reads += 1;
                }
                // Rewritten: the client has the slash already, and would come again and again.
                Found::Redirect if vars.context.uri.path().ends_with('/') => {
                    match self.wanted(vars, "/") {
                        Some(folder) if folder.path != wanted.path => wanted = folder,
                        _ => return Ok(error::plain(StatusCode::NOT_FOUND)),
                    }
                }
                Found::Redirect => return Ok(with_slash(vars)),
                Found::Folder(folder, place) => {
                    return self.list(folder, place, &wanted, &vars.parts.headers).await;
                }
                Found::Missing => return Ok(error::plain(StatusCode::NOT_FOUND)),
                Found::Forbidden => return Ok(error::plain(StatusCode::FORBIDDEN)),
            }
        }
    }

    /// `None`: no file can be meant. `behind` is put behind the path.
    fn wanted(&self, vars: &Vars<'_>, behind: &str) -> Option<Wanted> {
        let path = path::decode(&vars.context.path.forward)? + behind;
        let source = Decoded { vars, path: &path };
        let candidates = self.spec.tries.iter().map(|t| t.render(&source)).collect();
        Some(Wanted {
            candidates,
            codings: negotiate::codings(&vars.parts.headers, &self.spec.precompressed),
            path,
        })
    }

    /// From memory if that tells all, else where it may block.
    async fn look(&self, wanted: &Wanted) -> io::Result<Found> {
        match find::find(&self.spec, wanted, How::Cached) {
            // Its contents are here: nothing more will be read.
            Ok(
                found @ Found::File(FoundFile {
                    contents: Some(_), ..
                }),
            ) => return Ok(found),
            Ok(found @ (Found::Redirect | Found::Missing)) => return Ok(found),
            _ => {}
        }
        let (spec, wanted) = (self.spec.clone(), wanted.clone());
        threads::run(move || find::find(&spec, &wanted, How::Full)).await?
    }

    /// `None`: the file changed while it was read. `last`: then what was read is sent.
    async fn file(
        &self,
        file: FoundFile,
        vars: &Vars<'_>,
        last: bool,
    ) -> io::Result<Option<Response<ResponseBody>>> {
        let request = &vars.parts.headers;
        let stat = file.opened.stat;
        let made;
        let validators = match (&file.contents, file.coding) {
            (Some(kept), None) => &kept.validators,
            (_, coding) => {
                made = stat.validators(coding);
                &made
            }
        };
        let verdict = conditional::evaluate(request, validators);
        if verdict == Verdict::Failed {
            return Ok(Some(error::plain(StatusCode::PRECONDITION_FAILED)));
        }
        let mut headers = self.headers(&file, validators);
        if verdict == Verdict::NotModified {
            let mut response = empty(StatusCode::NOT_MODIFIED);
            *response.headers_mut() = headers;
            return Ok(Some(response));
        }
        let kind = content_type(&file.name);
        if let Some(coding) = file.coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.word()));
        }
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let is_head = vars.parts.method == Method::HEAD;
        // Ranges are defined for GET only.
        let ranges = if is_head || !conditional::range_applies(request, validators) {
            range::Wanted::Whole
        } else {
            range::wanted(request, stat.size)
        };
        let (status, parts) = match ranges {
            range::Wanted::Nothing => {
                let mut response = error::plain(StatusCode::RANGE_NOT_SATISFIABLE);
                let range = text(format!("bytes */{}", stat.size));
                response.headers_mut().insert(CONTENT_RANGE, range);
                return Ok(Some(response));
            }
            range::Wanted::Whole => {
                headers.insert(CONTENT_TYPE, kind);
                (StatusCode::OK, vec![Part::File(0..stat.size)])
            }
            range::Wanted::Parts(ranges) => {
                let parts = several(ranges, kind, stat.size, &mut headers);
                (StatusCode::PARTIAL_CONTENT, parts)
            }
        };
        let content = if is_head {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(stat.size));
            Content::Empty
        } else if stat.size <= cache::SMALL {
            match contents(file, last).await? {
                Some(bytes) => Content::from(gather(&bytes, &parts)),
                None => return Ok(None),
            }
        } else {
            Content::File(FileBody::new(file.opened.into_file()?, parts))
        };
        let mut response = Response::new(ResponseBody::new(content));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(Some(response))
    }

    /// Those that a 304 has as well (RFC 9110 section 15.4.5).
    fn headers(&self, file: &FoundFile, validators: &Validators) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(10);
        headers.insert(ETAG, validators.etag.clone());
        let now = SystemTime::now();
        // Never later than `Date` (section 8.8.2.1).
        if now
            .duration_since(UNIX_EPOCH)
            .is_ok_and(|now| validators.modified <= now.as_secs())
        {
            headers.insert(LAST_MODIFIED, validators.last_modified.clone());
        }
        if !self.spec.precompressed.is_empty() && may_have_siblings(&file.name) {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(value) = &self.spec.cache_control {
            headers.insert(CACHE_CONTROL, value.clone());
        }
        headers
    }

    async fn list(
        &self,
        folder: open::Opened,
        place: String,
        wanted: &Wanted,
        request: &HeaderMap,
    ) -> io::Result<Response<ResponseBody>> {
        let json = negotiate::wants_json(request);
        let (spec, path) = (self.spec.clone(), wanted.path.clone());
        let page =
            threads::run(move || listing::render(&spec, &folder, &place, &path, json)).await??;
        let mut response = Response::new(ResponseBody::new(Content::from(page)));
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let kind = if json {
            "application/json"
        } else {
            let policy = "default-src 'none'; style-src 'unsafe-inline'";
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
            "text/html; charset=utf-8"
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Ok(response)
    }
}

/// The contents of a small file. `None`: it was changed meanwhile, and `last` is not set.
async fn contents(file: FoundFile, last: bool) -> io::Result<Option<Bytes>> {
    if let Some(kept) = &file.contents {
        return Ok(Some(kept.bytes.clone()));
    }
    let stat = file.opened.stat;
    let handle = file.opened.into_file()?;
    threads::run(move || read_settled(&handle, stat, last)).await?
}

/// Blocks.
fn read_settled(file: &File, stat: Stat, last: bool) -> io::Result<Option<Bytes>> {
    let read = body::read_whole(file, stat.size);
    let unchanged = open::stat_of(file)? == stat;
    match read {
        Ok(bytes) if unchanged => {
            if stat.is_settled(SystemTime::now()) {
                cache::put(stat, bytes.clone());
            }
            Ok(Some(bytes))
        }
        // One that grows all the time, such as a log.
        Ok(bytes) if last => Ok(Some(bytes)),
        Err(error) if unchanged || last => Err(error),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// `{path}` decoded, as names in a folder are; the rest as everywhere.
struct Decoded<'a> {
    vars: &'a Vars<'a>,
    path: &'a str,
}

impl Source for Decoded<'_> {
    fn var(&self, var: &Var) -> Cow<'_, str> {
        match var {
            Var::Path => Cow::Borrowed(self.path),
            other => self.vars.var(other),
        }
    }
}

/// To the same path with a slash behind it: path only, and never two slashes before it, so that it leads nowhere else.
fn with_slash(vars: &Vars<'_>) -> Response<ResponseBody> {
    let uri = vars.context.uri;
    // The path as the client knows it.
    let path = Path::parse(uri.path()).map_or(Cow::Borrowed("/"), |path| path.forward);
    let path = path.trim_start_matches(['/', '\\']);
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut response = empty(StatusCode::PERMANENT_REDIRECT);
    let location = text(format!("/{path}/{query}"));
    response.headers_mut().insert(LOCATION, location);
    response
}

/// The parts of a 206, with the fields that say what they are.
fn several(
    ranges: Vec<Range<u64>>,
    kind: HeaderValue,
    size: u64,
    headers: &mut HeaderMap,
) -> Vec<Part> {
    let name = |range: &Range<u64>| {
        let last = range.end.saturating_sub(1);
        format!("bytes {}-{last}/{size}", range.start)
    };
    if let [range] = &ranges[..] {
        headers.insert(CONTENT_RANGE, text(name(range)));
        headers.insert(CONTENT_TYPE, kind);
        return vec![Part::File(range.clone())];
    }
    let boundary = format!("{:032x}", fastrand::u128(..));
    let kind_text = kind.to_str().unwrap_or("application/octet-stream");
    let mut parts = Vec::with_capacity(ranges.len() * 2 + 1);
    for (index, range) in ranges.into_iter().enumerate() {
        let lead = if index == 0 { "" } else { "\r\n" };
        let head = format!(
            "{lead}--{boundary}\r\nContent-Type: {kind_text}\r\nContent-Range: {}\r\n\r\n",
            name(&range)
        );
        parts.push(Part::Text(head.into()));
        parts.push(Part::File(range));
    }
    parts.push(Part::Text(format!("\r\n--{boundary}--\r\n").into()));
    let kind = text(format!("multipart/byteranges; boundary={boundary}"));
    headers.insert(CONTENT_TYPE, kind);
    parts
}

/// Parts of what is in memory; one of them costs no copy.
fn gather(contents: &Bytes, parts: &[Part]) -> Bytes {
    let slice = |range: &Range<u64>| {
        let at = |n: u64| usize::try_from(n).map_or(contents.len(), |n| n.min(contents.len()));
        contents.slice(at(range.start)..at(range.end).max(at(range.start)))
    };
    if let [Part::File(range)] = parts {
        return slice(range);
    }
    let mut out = BytesMut::new();
    for part in parts {
        match part {
            Part::Text(text) => out.extend_from_slice(text),
            Part::File(range) => out.extend_from_slice(&slice(range)),
        }
    }
    out.freeze()
}

/// By a file's name; text is taken for UTF-8.
pub(in crate::http) fn content_type(name: &str) -> HeaderValue {
    let kind = mime_guess::from_path(name)
        .first_raw()
        .unwrap_or("application/octet-stream");
    match kind {
        "text/html" => HeaderValue::from_static("text/html; charset=utf-8"),
        "application/javascript" => HeaderValue::from_static("text/javascript; charset=utf-8"),
        text_kind if text_kind.starts_with("text/") => text(format!("{text_kind}; charset=utf-8")),
        other => HeaderValue::from_static(other),
    }
}

/// A field value of what was checked or made here.
fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::new(Content::Empty));
    *response.status_mut() = status;
    response
}

fn failure(error: &io::Error) -> Error {
    let short = Error::us(ErrorKind::ProxyInternalError, format!("files: {error}"));
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        // It passes: the client may ask again.
        let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
        if Errno::from_io_error(error).is_some_and(|e| passing.contains(&e)) {
            return Error {
                status: Some(StatusCode::SERVICE_UNAVAILABLE),
                ..short
            };
        }
    }
    short
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn types_by_name() {
        for (name, kind) in [
            ("a.html", "text/html; charset=utf-8"),
            ("a.HTML", "text/html; charset=utf-8"),
            ("a.css", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.webmanifest", "application/manifest+json"),
            ("a.tar.gz", "application/gzip"),
            ("LICENSE", "application/octet-stream"),
        ] {
            assert_eq!(content_type(name), kind, "{name}");
        }
    }

    #[test]
    fn parts_of_what_is_in_memory() {
        let bytes = Bytes::from_static(b"0123456789");
        assert_eq!(gather(&bytes, &[Part::File(2..5)]), "234");
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("text/plain");
        let parts = several(vec![0..2, 8..10], kind, 10, &mut headers);
        let whole = gather(&bytes, &parts);
        let length: u64 = parts.iter().map(Part::len).sum();
        assert_eq!(whole.len() as u64, length);
        let kind = headers[CONTENT_TYPE].to_str().unwrap();
        let boundary = kind.split_once("boundary=").unwrap().1;
        let text = String::from_utf8(whole.to_vec()).unwrap();
        let expected = format!(
            "--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
             \r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--{boundary}--\r\n"
        );
        assert_eq!(text, expected);
    }
}
