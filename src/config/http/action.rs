//! Actions from what is written to what is checked.

use std::sync::Arc;

use ::http::{HeaderName, HeaderValue, StatusCode};

use super::super::check::{Checker, shorten};
use super::super::decode::Loc;
use super::super::scalar::Wrong;
use super::super::template::{Part, Side, Template};
use super::super::tree::At;
use super::super::upstream::{References, base_path};
use super::files::files;
use super::raw::{ProxyRaw, RedirectRaw, RespondRaw};
use super::{ActionSpec, FilesRaw, HostHeader, ProxySpec, RedirectSpec, RespondBody, RespondSpec};

/// The action keys of a server or a route.
pub(super) struct Actions<'r> {
    pub(super) proxy: Option<&'r Loc<Box<ProxyRaw>>>,
    pub(super) files: Option<&'r Loc<Box<FilesRaw>>>,
    pub(super) respond: Option<&'r Loc<Box<RespondRaw>>>,
    pub(super) redirect: Option<&'r Loc<Box<RedirectRaw>>>,
    pub(super) tcp: Option<&'r Loc<String>>,
}

/// Fields that describe the message itself; they follow from the body and the connection.
pub(super) const FRAMING: [&str; 7] = [
    "connection",
    "content-length",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Actions<'_> {
    pub(super) fn count(&self) -> usize {
        usize::from(self.proxy.is_some())
            + usize::from(self.files.is_some())
            + usize::from(self.respond.is_some())
            + usize::from(self.redirect.is_some())
            + usize::from(self.tcp.is_some())
    }

    /// Checks all that are given; more than one is an error, none is the caller's to judge.
    pub(super) fn spec(
        &self,
        live: bool,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> Option<ActionSpec> {
        if self.count() > 1 {
            let given = [
                self.proxy.map(|p| ("proxy", p.at)),
                self.files.map(|f| ("files", f.at)),
                self.respond.map(|r| ("respond", r.at)),
                self.redirect.map(|r| ("redirect", r.at)),
                self.tcp.map(|t| ("tcp", t.at)),
            ];
            let given: Vec<_> = given.into_iter().flatten().collect();
            for (key, at) in given.iter().skip(1) {
                check
                    .findings
                    .key_error(
                        *at,
                        format!("`{key}` is a second action besides `{}`", given[0].0),
                    )
                    .help("a request gets exactly one");
            }
        }
        let proxy = self
            .proxy
            .and_then(|p| proxy(p, live, references, check))
            .map(ActionSpec::Proxy);
        let files = self
            .files
            .and_then(|f| files(f, check))
            .map(ActionSpec::Files);
        let respond = self
            .respond
            .and_then(|r| respond(r, check))
            .map(ActionSpec::Respond);
        let redirect = self
            .redirect
            .and_then(|r| redirect(r, check))
            .map(ActionSpec::Redirect);
        let tcp = self
            .tcp
            .and_then(|t| tcp(t, live, references, check))
            .map(|upstream| ActionSpec::Tcp { upstream });
        proxy.or(files).or(respond).or(redirect).or(tcp)
    }
}

fn proxy(
    raw: &Loc<Box<ProxyRaw>>,
    live: bool,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) -> Option<ProxySpec> {
    let host_header = raw
        .host_header
        .as_ref()
        .map_or(Some(HostHeader::Preserve), |h| host_header(h, check));
    let timeout = raw.timeout.as_ref().map(|t| check.duration(Some(t)));
    let path = raw.path.as_ref().and_then(|p| {
        let parsed = base_path(p);
        check.take(p.at, parsed)
    });
    let reference = match (&raw.upstream, &raw.split) {
        (Some(upstream), None) => references.resolve(upstream, live, check)?,
        (None, Some(split)) => references.split(split, live, check)?,
        (Some(_), Some(split)) => {
            let message = "`proxy` has either `upstream` or `split`";
            check.findings.key_error(split.at, message);
            return None;
        }
        (None, None) => {
            if !["upstream", "split"]
                .iter()
                .any(|key| raw.spoiled.contains(key))
            {
                check.findings.error(raw.at, "`proxy` needs an `upstream`");
            }
            return None;
        }
    };
    if let (Some(path), false) = (&raw.path, reference.base.is_empty()) {
        check
            .findings
            .error(path.at, "the URL in `upstream` has a path already");
    }
    let base = path.unwrap_or(reference.base);
    Some(ProxySpec {
        upstream: reference.upstream,
        split: raw.split.is_some(),
        base,
        host_header: host_header?,
        timeout,
        websocket: raw.websocket.as_ref().is_none_or(|w| w.value),
        retries: raw.retries.clone().unwrap_or_default().spec(check),
        buffer: raw.buffer.as_ref().map_or(0, |b| b.0),
        on_change: raw.on_change.as_ref().map(|o| o.value),
    })
}

fn tcp(
    text: &Loc<String>,
    live: bool,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) -> Option<Arc<str>> {
    if text.contains("://") {
        let message = "what messages carry is passed on as it is: a URL says too much";
        check
            .findings
            .error(text.at, message)
            .help("the name of an upstream, or `host:port`");
        return None;
    }
    let reference = references.resolve(text, live, check)?;
    Some(reference.upstream)
}

fn host_header(text: &Loc<String>, check: &mut Checker<'_>) -> Option<HostHeader> {
    match text.as_str() {
        "preserve" => Some(HostHeader::Preserve),
        "upstream" => Some(HostHeader::Upstream),
        fixed => {
            let value = host_value(fixed).map_err(|wrong| {
                wrong.help("`preserve`, `upstream`, or a host with or without port")
            });
            check.take(text.at, value.map(HostHeader::Fixed))
        }
    }
}

/// `host[:port]`, as RFC 9110 has it: no user, no path.
pub(super) fn host_value(text: &str) -> Result<HeaderValue, Wrong> {
    let valid = ::http::uri::Authority::try_from(text).is_ok() && !text.contains('@');
    let value = HeaderValue::from_str(text).ok().filter(|_| valid);
    value.ok_or_else(|| Wrong::new(format!("`{}` is not a value of `Host`", shorten(text))))
}

fn respond(raw: &Loc<Box<RespondRaw>>, check: &mut Checker<'_>) -> Option<RespondSpec> {
    let status = status(
        raw.status.as_ref(),
        200,
        check,
        |s| (200..=599).contains(&s),
        "200 to 599",
    );
    let body = match (&raw.body, &raw.file) {
        (Some(body), Some(file)) => {
            template(body.at, body, check);
            check
                .findings
                .key_error(file.at, "`file` is a second body besides `body`")
                .help("a response has one body");
            None
        }
        (None, Some(file)) if file.is_empty() => {
            check.findings.error(file.at, "an empty path");
            None
        }
        (None, Some(file)) => Some(RespondBody::File(check.base.join(&file.value))),
        (Some(body), None) => template(body.at, body, check).map(RespondBody::Template),
        (None, None) => Some(RespondBody::Template(Template { parts: Vec::new() })),
    };
    let mut headers = Vec::new();
    for (name, value) in raw.headers.iter().flat_map(|h| h.iter()) {
        let parsed = HeaderName::try_from(name.as_str());
        match &parsed {
            Err(_) => {
                check.findings.key_error(
                    value.at,
                    format!("`{}` is not the name of a header", shorten(name)),
                );
            }
            Ok(name) if FRAMING.contains(&name.as_str()) => {
                check
                    .findings
                    .key_error(
                        value.at,
                        format!("`{name}` follows from the body and the connection"),
                    )
                    .help("leave it out");
            }
            Ok(name) if headers.iter().any(|(other, _)| other == name) => {
                check
                    .findings
                    .key_error(value.at, format!("the header `{name}` is here twice"));
            }
            Ok(_) => {}
        }
        let value =
            template(value.at, value, check).filter(|t| is_header_value(t, value.at, check));
        headers.extend(parsed.ok().zip(value));
    }
    Some(RespondSpec {
        status: status?,
        body: body?,
        headers,
    })
}

fn redirect(raw: &Loc<Box<RedirectRaw>>, check: &mut Checker<'_>) -> Option<RedirectSpec> {
    let is_redirect = |s| matches!(s, 301 | 302 | 303 | 307 | 308);
    let status = status(
        raw.status.as_ref(),
        308,
        check,
        is_redirect,
        "301, 302, 303, 307 or 308",
    );
    let Some(to) = &raw.to else {
        if !raw.spoiled.contains(&"to") {
            check
                .findings
                .error(raw.at, "`redirect` needs `to`")
                .help("such as `to = \"https://{host}{uri}\"`");
        }
        return None;
    };
    if to.is_empty() {
        check.findings.error(to.at, "an empty place to go to");
        return None;
    }
    let to = template(to.at, to, check).filter(|t| is_header_value(t, to.at, check))?;
    Some(RedirectSpec {
        to,
        status: status?,
    })
}

fn status(
    raw: Option<&Loc<u64>>,
    otherwise: u16,
    check: &mut Checker<'_>,
    fits: impl Fn(u16) -> bool,
    which: &str,
) -> Option<StatusCode> {
    let (value, at) = raw.map_or((u64::from(otherwise), At::NOWHERE), |s| (s.value, s.at));
    let status = u16::try_from(value)
        .ok()
        .filter(|s| fits(*s))
        .and_then(|s| StatusCode::from_u16(s).ok());
    check.take(
        at,
        status.ok_or_else(|| {
            Wrong::new(format!("{value} is not possible as a status here")).help(which)
        }),
    )
}

pub(super) fn template(at: At, text: &str, check: &mut Checker<'_>) -> Option<Template> {
    template_for(at, text, Side::Request, check)
}

/// A template that stands on `side`.
pub(super) fn template_for(
    at: At,
    text: &str,
    side: Side,
    check: &mut Checker<'_>,
) -> Option<Template> {
    match Template::parse_for(text, side) {
        Ok(template) => Some(template),
        Err(all) => {
            for wrong in all {
                check.findings.error(at, wrong.message).help_if(wrong.help);
            }
            None
        }
    }
}

/// What stands between the variables must be fit for a header field.
pub(super) fn is_header_value(template: &Template, at: At, check: &mut Checker<'_>) -> bool {
    let fits = |part: &Part| match part {
        Part::Text(text) => HeaderValue::from_str(text).is_ok(),
        Part::Var(_) => true,
    };
    let all = template.parts.iter().all(fits);
    if !all {
        check.findings.error(
            at,
            "a header cannot hold line breaks and other control characters",
        );
    }
    all
}
