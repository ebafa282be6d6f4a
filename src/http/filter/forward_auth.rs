//! `forward_auth`: another server says whether a request may pass. It is asked through its upstream, with the pool and the
//! health of that; whatever goes wrong, nobody passes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, EXPECT, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, RANGE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::{Asking, Edit, Passed, Refusal};
use crate::config::http::ForwardAuthSpec;
use crate::http::action::proxy::inbound_response;
use crate::http::body::ResponseBody;
use crate::http::{error, headers};
use crate::metrics::cell::Outcome;
use crate::upstream::body::RequestBody;
use crate::upstream::error::{Error, Kind};
use crate::upstream::{InFlight, SendOptions, Upstream, UpstreamBody};

static X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Where an answer says who the request is of; the first that has a name counts.
static USER: [HeaderName; 3] = [
    HeaderName::from_static("remote-user"),
    HeaderName::from_static("x-auth-request-user"),
    HeaderName::from_static("x-forwarded-user"),
];

/// Bytes of an answer that lets the request pass, which nobody wants, that are read so that its connection stays.
const DISCARD: u64 = 16 * 1024;

/// Fields that are about the answer to the request itself: the question is another one, and has no body.
const NOT_ASKED: [HeaderName; 9] = [
    CONTENT_LENGTH,
    EXPECT,
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    ACCEPT_ENCODING,
];

/// `forward_auth` as a generation has it.
#[derive(Debug)]
pub(super) struct ForwardAuth {
    /// `None` only if a document broke its promise to hold every upstream it names.
    upstream: Option<Arc<Upstream>>,
    target: PathAndQuery,
    copied: Box<[HeaderName]>,
    timeout: Duration,
}

impl ForwardAuth {
    pub(super) fn build(
        spec: &ForwardAuthSpec,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
    ) -> ForwardAuth {
        ForwardAuth {
            upstream: upstreams.get(&spec.upstream).cloned(),
            target: spec.target.clone(),
            copied: spec.copy_headers.clone().into(),
            timeout: spec.timeout,
        }
    }

    /// Asks, and gives the request what the answer has for it.
    ///
    /// # Errors
    /// The answer that is not 2xx, as the client's; or why there is none.
    pub(super) async fn ask(
        &self,
        asking: &mut Asking<'_, '_>,
        passed: &mut Passed,
    ) -> Result<(), Refusal> {
        let began = Instant::now();
        let (answer, mut in_flight) = match self.send(asking).await {
            Ok(sent) => sent,
            Err(error) => return Err(Box::new(error::respond(&error))),
        };
        let until = self.timeout.saturating_sub(began.elapsed());
        let (head, mut body) = inbound_response(answer).into_parts();
        if !head.status.is_success() {
            let is_head = asking.parts.method == Method::HEAD;
            if is_head {
                read_away(&mut body, until).await;
            }
            let mut body = ResponseBody::streamed(body, in_flight);
            if is_head {
                body.empty();
            }
            return Err(Box::new(Response::from_parts(head, body)));
        }
        let sent = read_away(&mut body, until).await;
        in_flight.end(Outcome {
            status: head.status.as_u16(),
            took: began.elapsed(),
            sent,
        });
        self.copy(&head.headers, &mut asking.parts.headers, passed);
        if let Some(user) = self.user(&head.headers) {
            asking.context.user = Some(user);
        }
        Ok(())
    }

    /// Into the request, for all that looks at it here; and into what goes out, behind all that is taken away on the way:
    /// there a client's `Connection` can't have it removed, and what looks like another hop's word arrives.
    fn copy(&self, answer: &HeaderMap, fields: &mut HeaderMap, passed: &mut Passed) {
        for name in &self.copied {
            fields.remove(name);
            passed.request.push(Edit::Remove(name.clone()));
            for value in answer.get_all(name) {
                fields.append(name, value.clone());
                let edit = Edit::Add(name.clone(), value.clone());
                passed.request.push(edit);
            }
        }
    }

    /// Who the request is of, if the answer says so in a field that is copied.
    fn user(&self, answer: &HeaderMap) -> Option<Arc<str>> {
        let mut names = USER.iter().filter(|name| self.copied.contains(name));
        names.find_map(|name| {
            let user = answer.get(name)?.to_str().ok()?;
            (!user.is_empty()).then(|| user.into())
        })
    }

    async fn send(
        &self,
        asking: &Asking<'_, '_>,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        let Some(upstream) = &self.upstream else {
            let detail = "the upstream of `forward_auth` does not exist";
            return Err(Error::us(Kind::ProxyConfigurationError, detail));
        };
        let request = self.question(asking)?;
        let options = SendOptions {
            response_timeout: Some(self.timeout),
            host_from_target: true,
            client: match upstream.tells_client() {
                true => asking.context.client_and_local().map(Box::new),
                false => None,
            },
            ..SendOptions::default()
        };
        let worker = &asking.context.connection.worker;
        upstream.send(worker, request, options).await
    }

    fn question(&self, asking: &Asking<'_, '_>) -> Result<Request<RequestBody>, Error> {
        let context = &*asking.context;
        let mut fields = asking.parts.headers.clone();
        headers::strip_request(&mut fields, context.connection.trusted);
        for name in &NOT_ASKED {
            fields.remove(name);
        }
        headers::set_forwarded(
            &mut fields,
            context.connection,
            context.host.as_ref(),
            context.scheme,
        );
        // Says so, too, when it is asked to ask itself.
        headers::set_via(&mut fields, context.version)?;
        headers::join_cookies(&mut fields);
        let method = HeaderValue::from_str(asking.parts.method.as_str());
        let uri = HeaderValue::from_str(&context.target());
        for (name, value) in [(&X_FORWARDED_METHOD, method), (&X_FORWARDED_URI, uri)] {
            fields.remove(name);
            if let Ok(value) = value {
                fields.insert(name, value);
            }
        }
        let mut request = Request::new(RequestBody::empty());
        *request.uri_mut() = Uri::from(self.target.clone());
        *request.headers_mut() = fields;
        Ok(request)
    }
}

/// Reads what nobody wants, so that its connection can be used again, and says how much that was. A longer body, or one
/// that does not end in time, costs its connection.
async fn read_away(body: &mut UpstreamBody, limit: Duration) -> u64 {
    let mut read = 0;
    if body.size_hint().lower() > DISCARD {
        return read;
    }
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > DISCARD {
                return;
            }
        }
    };
    // Late or not: the answer's head has said all that counts.
    drop(tokio::time::timeout(limit, reading).await);
    read
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn asks(copied: &[&'static str]) -> ForwardAuth {
        ForwardAuth {
            upstream: None,
            target: PathAndQuery::from_static("/"),
            copied: copied
                .iter()
                .copied()
                .map(HeaderName::from_static)
                .collect(),
            timeout: Duration::from_secs(1),
        }
    }

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn the_user_is_who_a_copied_field_names() {
        let answer = fields(&[("x-forwarded-user", "bob"), ("remote-user", "alice")]);
        let user = |copied: &[&'static str]| asks(copied).user(&answer);
        assert_eq!(
            user(&["x-forwarded-user", "remote-user"]).as_deref(),
            Some("alice")
        );
        assert_eq!(user(&["x-forwarded-user"]).as_deref(), Some("bob"));
        assert_eq!(user(&["remote-groups"]), None);
        let nobody = fields(&[("remote-user", "")]);
        assert_eq!(asks(&["remote-user"]).user(&nobody), None);
    }

    #[test]
    fn what_the_client_says_under_copied_names_is_gone() {
        let answer = fields(&[("remote-user", "alice"), ("x-else", "1")]);
        let mut request = fields(&[("remote-user", "root"), ("remote-email", "root@x")]);
        let mut passed = Passed::default();
        let auth = asks(&["remote-user", "remote-email"]);
        auth.copy(&answer, &mut request, &mut passed);
        assert_eq!(request, fields(&[("remote-user", "alice")]));
        let mut out = fields(&[("remote-email", "root@x")]);
        for edit in passed.request {
            edit.apply(&mut out);
        }
        assert_eq!(out, fields(&[("remote-user", "alice")]));
    }
}
