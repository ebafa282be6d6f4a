//! Template variables of a request.

use std::borrow::Cow;

use http::HeaderMap;
use http::request::Parts;

use super::headers::scheme_text;
use super::request::RequestContext;
use super::text;
use crate::config::template::{ClientCertPart, Source, Var};

/// What a template of an action may name.
#[derive(Debug)]
pub struct Vars<'a> {
    pub context: &'a RequestContext<'a>,
    pub parts: &'a Parts,
    pub server: &'a str,
    pub route: Option<&'a str>,
    pub generation: u64,
}

impl Source for Vars<'_> {
    fn var(&self, var: &Var) -> Cow<'_, str> {
        let context = self.context;
        match var {
            Var::ClientIp => or_empty(context.client),
            // A proxy tells its client's address, seldom the port: better none than the proxy's own.
            Var::ClientPort if context.client != context.connection.peer.ip() => "".into(),
            Var::ClientPort => or_empty(context.connection.peer.address().map(|a| a.port())),
            Var::Scheme => scheme_text(context.scheme).into(),
            Var::Host => context.host_name().into(),
            Var::Port => or_empty(context.connection.local.map(|a| a.port())),
            Var::Method => self.parts.method.as_str().into(),
            Var::Path if context.proxied => context.uri.path().into(),
            Var::Path => (&*context.path.forward).into(),
            Var::Query => context.query.as_deref().unwrap_or_default().into(),
            Var::Uri if context.proxied => context.uri.to_string().into(),
            Var::Uri => context
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str())
                .into(),
            Var::Server => self.server.into(),
            Var::Route => self.route.unwrap_or_default().into(),
            Var::Generation => self.generation.to_string().into(),
            Var::Time => format!("{:.3}", jiff::Timestamp::now()).into(),
            Var::TlsVersion => context
                .connection
                .tls
                .as_ref()
                .map_or("", |t| t.version)
                .into(),
            Var::RequestId => String::from_utf8_lossy(context.request_id.as_bytes()),
            Var::User => context.user.as_deref().unwrap_or("").into(),
            // Not known yet: see `Var::since`.
            Var::Upstream
            | Var::Target
            | Var::Status
            | Var::DurationMs
            | Var::BytesSent
            | Var::BytesReceived
            | Var::Ended => "".into(),
            Var::Sni => {
                let session = context.connection.tls.as_ref();
                session.and_then(|t| t.sni.as_deref()).unwrap_or("").into()
            }
            Var::ClientCert(part) => context
                .client_cert
                .map_or("", |client| match part {
                    ClientCertPart::Subject => &client.subject,
                    ClientCertPart::Fingerprint => &client.fingerprint,
                    ClientCertPart::San => &client.san,
                })
                .into(),
            Var::Header(name) => header(&self.parts.headers, name),
            Var::Cookie(name) => text::cookies(&self.parts.headers)
                .find(|(key, _)| *key == name.as_bytes())
                .map_or(Cow::Borrowed(""), |(_, value)| {
                    String::from_utf8_lossy(value)
                }),
            Var::QueryKey(name) => text::query_pairs(context.query.as_deref().unwrap_or_default())
                .find(|(key, _)| **key == *name.as_bytes())
                .map_or(Cow::Borrowed(""), |(_, value)| {
                    String::from_utf8_lossy(&value).into_owned().into()
                }),
        }
    }
}

/// A unix socket has neither addresses nor ports.
pub(super) fn or_empty(value: Option<impl ToString>) -> Cow<'static, str> {
    value.map_or(Cow::Borrowed(""), |value| value.to_string().into())
}

/// All lines of a field, joined as a list.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Cow<'a, str> {
    let mut lines = headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |all, line| format!("{all}, {line}").into())
}
