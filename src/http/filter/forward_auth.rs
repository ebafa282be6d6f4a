//! `forward_auth`: another server says whether a request may pass. It is asked through its upstream, with the pool and the
//! health of that; whatever goes wrong, nobody passes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};

use super::{Asking, Refusal};
use crate::config::http::ForwardAuthSpec;
use crate::http::action::proxy::inbound_response;
use crate::http::body::{Content, ResponseBody};
use crate::http::{error, headers};
use crate::upstream::body::RequestBody;
use crate::upstream::error::{Error, Kind};
use crate::upstream::{SendOptions, Upstream};

static X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
static X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

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
    pub(super) async fn ask(&self, asking: &mut Asking<'_, '_>) -> Result<(), Refusal> {
        let answer = match self.send(asking).await {
            Ok(answer) => answer,
            Err(error) => return Err(Box::new(error::respond(&error))),
        };
        if !answer.status().is_success() {
            let mut answer = answer;
            if asking.parts.method == Method::HEAD {
                *answer.body_mut() = ResponseBody::new(Content::Empty);
            }
            return Err(Box::new(answer));
        }
        let fields = &mut asking.parts.headers;
        unname(fields, &self.copied);
        for name in &self.copied {
            fields.remove(name);
            for value in answer.headers().get_all(name) {
                fields.append(name, value.clone());
            }
        }
        Ok(())
    }

    async fn send(&self, asking: &Asking<'_, '_>) -> Result<Response<ResponseBody>, Error> {
        let Some(upstream) = &self.upstream else {
            let detail = "the upstream of `forward_auth` does not exist";
            return Err(Error::us(Kind::ProxyConfigurationError, detail));
        };
        let request = self.question(asking)?;
        let options = SendOptions {
            response_timeout: Some(self.timeout),
            host_from_target: true,
            ..SendOptions::default()
        };
        let worker = &asking.context.connection.worker;
        let (response, in_flight) = upstream.send(worker, request, options).await?;
        Ok(inbound_response(response).map(|body| ResponseBody::streamed(body, in_flight)))
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

/// Takes names out of `Connection`: a client could have what is set here removed on the way to the upstream.
fn unname(fields: &mut HeaderMap, names: &[HeaderName]) {
    let is_ours = |token: &[u8]| {
        let mut names = names.iter();
        names.any(|name| {
            token
                .trim_ascii()
                .eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    };
    let mut lines = fields.get_all(CONNECTION).iter();
    if !lines.any(|line| line.as_bytes().split(|b| *b == b',').any(is_ours)) {
        return;
    }
    let lines: Vec<HeaderValue> = fields.get_all(CONNECTION).iter().cloned().collect();
    fields.remove(CONNECTION);
    for line in lines {
        let tokens = line.as_bytes().split(|b| *b == b',');
        let kept: Vec<&[u8]> = tokens.filter(|token| !is_ours(token)).collect();
        if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b','))
            && !value.is_empty()
        {
            fields.append(CONNECTION, value);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn connection_can_not_name_what_is_copied() {
        let mut fields = HeaderMap::new();
        for line in ["close, Remote-User", "x-hop", "remote-user"] {
            fields.append(CONNECTION, line.parse().unwrap());
        }
        unname(&mut fields, &[HeaderName::from_static("remote-user")]);
        let left: Vec<_> = fields.get_all(CONNECTION).iter().collect();
        assert_eq!(left, ["close", "x-hop"]);
    }
}
