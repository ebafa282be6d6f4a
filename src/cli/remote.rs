//! The verbs that ask a running process: each is one call of the admin API, drawn for people.

use std::collections::VecDeque;
use std::future::Future;
use std::path::Path;

use http::Method;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use serde::de::DeserializeOwned;

use super::args::{
    Adapt, Admin, CloseSession, Form, Now, Reload, SessionVerb, Sessions, Status, Stop, Until,
};
use super::client::{self, Answer, Ask};
use super::file::Text;
use super::{Exit, complain, draw, print};
use crate::admin::{AdaptAnswer, Problem, plan_text};
use crate::config::Diagnostic;
use crate::supervisor::event::{Event, Phase};

/// Largest answer that is read whole.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Longest line of a stream.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// Runs one verb on a runtime of its own.
pub(crate) fn block_on(verb: impl Future<Output = Result<Exit, Failed>>) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no runtime: {error}"));
            return Exit::Other;
        }
    };
    match runtime.block_on(verb) {
        Ok(exit) => exit,
        Err(Failed { exit, message }) => {
            complain(&message);
            exit
        }
    }
}

/// Why a verb came to no answer that could be drawn.
#[derive(Debug)]
pub(crate) struct Failed {
    exit: Exit,
    message: String,
}

impl Failed {
    fn new(exit: Exit, message: impl Into<String>) -> Failed {
        Failed {
            exit,
            message: message.into(),
        }
    }
}

pub(crate) async fn reload(reload: Reload) -> Result<Exit, Failed> {
    let text = read(reload.config.as_deref())?;
    let wait = reload.wait;
    let mut query = vec![("wait", wait.name().to_owned())];
    query.extend(reload.drain_timeout.map(|time| ("drain_timeout", time)));
    query.extend(reload.turn.map(|time| ("turn", time)));
    query.extend(reload.strict.then(|| ("strict", "true".to_owned())));
    let mut ask = post("/reload", &query, text.as_ref());
    ask.headers
        .extend(reload.if_match.map(|tag| ("if-match", tag)));
    ask.headers
        .extend(reload.idempotency_key.map(|key| ("idempotency-key", key)));
    follow(&reload.admin, ask, text, wait, reload.json).await
}

pub(crate) async fn stop(stop: Stop) -> Result<Exit, Failed> {
    let mut query = vec![("wait", stop.wait.name().to_owned())];
    query.extend(stop.drain_timeout.map(|time| ("drain_timeout", time)));
    follow(
        &stop.admin,
        post("/stop", &query, None),
        None,
        stop.wait,
        stop.json,
    )
    .await
}

pub(crate) async fn adapt(adapt: Adapt) -> Result<Exit, Failed> {
    let text = read(adapt.config.as_deref())?;
    let query: Vec<_> = adapt
        .strict
        .then(|| ("strict", "true".to_owned()))
        .into_iter()
        .collect();
    let answer = send(&adapt.admin, post("/adapt", &query, text.as_ref())).await?;
    if !answer.response.status().is_success() {
        return refused(answer, text.as_ref()).await;
    }
    let body = whole(answer).await?;
    if adapt.json {
        print(&String::from_utf8_lossy(&body));
        return Ok(Exit::Done);
    }
    let answer: AdaptAnswer = parse(&body)?;
    show(text.as_ref(), &[], &answer.warnings);
    print(&plan_text(&answer.plan));
    Ok(Exit::Done)
}

pub(crate) async fn now(now: Now) -> Result<Exit, Failed> {
    let accept = match now.format {
        Form::Toml => "application/toml",
        Form::Json => "application/json",
        Form::Yaml => "application/yaml",
    };
    let part = now.part.as_deref().unwrap_or("").trim_matches('/');
    let mut target = "/now".to_owned();
    for segment in part.split('/').filter(|_| !part.is_empty()) {
        target.push('/');
        target.push_str(&escape(segment, true));
    }
    if now.defaults {
        target.push_str("?defaults=true");
    }
    let headers = vec![("accept", accept.to_owned())];
    let answer = send(
        &now.admin,
        Ask {
            target,
            headers,
            ..Ask::default()
        },
    )
    .await?;
    if !answer.response.status().is_success() {
        return refused(answer, None).await;
    }
    print(&String::from_utf8_lossy(&whole(answer).await?));
    Ok(Exit::Done)
}

pub(crate) async fn status(status: Status) -> Result<Exit, Failed> {
    let answer = send(
        &status.admin,
        Ask {
            target: "/status".to_owned(),
            ..Ask::default()
        },
    )
    .await?;
    if !answer.response.status().is_success() {
        return refused(answer, None).await;
    }
    let body = whole(answer).await?;
    if status.json {
        print(&String::from_utf8_lossy(&body));
    } else {
        print(&draw::status(&parse(&body)?));
    }
    Ok(Exit::Done)
}

pub(crate) async fn sessions(sessions: Sessions) -> Result<Exit, Failed> {
    if let Some(SessionVerb::Close(close)) = sessions.verb {
        return close_session(close).await;
    }
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let asked = [
        ("kind", sessions.kind),
        ("client", sessions.client),
        ("listener", sessions.listener),
        ("limit", number(sessions.limit)),
        ("after", number(sessions.after)),
    ];
    let query: Vec<_> = asked
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect();
    let ask = Ask {
        method: Method::GET,
        ..post("/sessions", &query, None)
    };
    let answer = send(&sessions.admin, ask).await?;
    if !answer.response.status().is_success() {
        return refused(answer, None).await;
    }
    let body = whole(answer).await?;
    match sessions.json {
        true => print(&String::from_utf8_lossy(&body)),
        false => print(&draw::sessions(&parse(&body)?)),
    }
    Ok(Exit::Done)
}

async fn close_session(close: CloseSession) -> Result<Exit, Failed> {
    let ask = post(&format!("/sessions/{}/close", close.id), &[], None);
    let answer = send(&close.admin, ask).await?;
    if !answer.response.status().is_success() {
        return refused(answer, None).await;
    }
    let body = whole(answer).await?;
    match close.json {
        true => print(&String::from_utf8_lossy(&body)),
        false => print(&draw::closed(&parse(&body)?)),
    }
    Ok(Exit::Done)
}

fn read(path: Option<&Path>) -> Result<Option<Text>, Failed> {
    path.map(Text::read)
        .transpose()
        .map_err(|message| Failed::new(Exit::Other, message))
}

/// A POST with the events as its answer, one a line.
fn post(path: &str, query: &[(&str, String)], text: Option<&Text>) -> Ask {
    let pairs: Vec<_> = query
        .iter()
        .map(|(key, value)| format!("{key}={}", escape(value, false)))
        .collect();
    let target = if pairs.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", pairs.join("&"))
    };
    let mut headers = Vec::new();
    let mut body = Bytes::new();
    if let Some(text) = text {
        headers.push(("content-type", text.content_type().to_owned()));
        body = Bytes::copy_from_slice(&text.bytes);
    }
    Ask {
        method: Method::POST,
        target,
        headers,
        body,
    }
}

async fn send(admin: &Admin, ask: Ask) -> Result<Answer, Failed> {
    let sent = client::send(&admin.admin, admin.token.as_deref(), &admin.tls, ask).await;
    sent.map_err(|message| Failed::new(Exit::NoAnswer, message))
}

/// Sends a change and draws its events as they come.
async fn follow(
    admin: &Admin,
    mut ask: Ask,
    text: Option<Text>,
    until: Until,
    json: bool,
) -> Result<Exit, Failed> {
    ask.headers
        .push(("accept", "application/x-ndjson".to_owned()));
    let mut answer = send(admin, ask).await?;
    if !answer.response.status().is_success() {
        return refused(answer, text.as_ref()).await;
    }
    let mut lines = Lines::default();
    // The server's own file may be readable here too: then its errors can be drawn in place.
    let mut text = text;
    let mut last: Option<Event> = None;
    while let Some(line) = lines.next(answer.response.body_mut()).await? {
        let event: Event = parse(&line)?;
        if text.is_none()
            && let Some(source) = &event.source
            && Path::new(source).is_absolute()
        {
            text = Text::again(Path::new(source));
        }
        if json {
            print(&format!("{}\n", String::from_utf8_lossy(&line)));
        } else {
            print(&draw::event(&event));
        }
        let enough = event.phase.is_terminal()
            || (until == Until::Committed && event.phase == Phase::Committed);
        last = Some(event);
        if enough {
            break;
        }
    }
    let Some(last) = last else {
        return Err(Failed::new(
            Exit::NoAnswer,
            "the answer broke off; `evergate status` shows what runs",
        ));
    };
    let Some(status) = last.status else {
        let message = format!(
            "the answer broke off in swap {}; /swaps/{} shows how it ended",
            last.swap, last.swap
        );
        return Err(Failed::new(Exit::NoAnswer, message));
    };
    let errors = last.errors.unwrap_or_default();
    if !json {
        show(text.as_ref(), &errors, &last.warnings.unwrap_or_default());
    }
    if status >= 400 {
        let detail = last
            .detail
            .unwrap_or_else(|| last.problem.unwrap_or_else(|| "refused".to_owned()));
        complain(&format!(
            "{}; nothing was changed",
            draw::summary(&detail, errors.len())
        ));
    }
    Ok(Exit::of_status(status))
}

/// Draws a problem.
async fn refused(answer: Answer, text: Option<&Text>) -> Result<Exit, Failed> {
    let status = answer.response.status();
    let body = whole(answer).await?;
    let Ok(problem) = serde_json::from_slice::<Problem>(&body) else {
        return Err(Failed::new(
            Exit::of_status(status.as_u16()),
            format!("answered {status}; is this an evergate?"),
        ));
    };
    show(text, &problem.errors, &problem.warnings);
    complain(&draw::summary(
        &format!("{}: {}", problem.title, problem.detail),
        problem.errors.len(),
    ));
    Ok(Exit::of_status(problem.status))
}

fn show(text: Option<&Text>, errors: &[Diagnostic], warnings: &[Diagnostic]) {
    let (name, bytes) = text.map_or(("", &b""[..]), |text| (text.name.as_str(), &text.bytes));
    draw::findings(name, bytes, errors, warnings);
}

async fn whole(mut answer: Answer) -> Result<Bytes, Failed> {
    let body = Limited::new(answer.response.body_mut(), MAX_ANSWER)
        .collect()
        .await;
    body.map(|body| body.to_bytes())
        .map_err(|error| Failed::new(Exit::NoAnswer, format!("the answer broke off: {error}")))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failed> {
    serde_json::from_slice(body).map_err(|error| {
        Failed::new(
            Exit::Other,
            format!("an answer that cannot be read: {error}; is this an evergate?"),
        )
    })
}

/// Percent-encodes all that has a meaning of its own; an escape that is there already stays in a path.
fn escape(text: &str, path: bool) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const VALUE: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~')
        .remove(b':');
    const PATH: &AsciiSet = &VALUE.remove(b'%');
    utf8_percent_encode(text, if path { PATH } else { VALUE }).to_string()
}

/// The lines of a body as they come.
#[derive(Default)]
struct Lines {
    ready: VecDeque<Bytes>,
    rest: Vec<u8>,
}

impl Lines {
    async fn next(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, Failed> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            match body.frame().await {
                Some(Ok(frame)) => self.push(frame.data_ref().map_or(&b""[..], |data| data)),
                // The rest without a line end is no event.
                Some(Err(_)) | None => return Ok(None),
            }
            if self.rest.len() > MAX_LINE {
                return Err(Failed::new(
                    Exit::Other,
                    "a line without end; is this an evergate?",
                ));
            }
        }
    }

    fn push(&mut self, data: &[u8]) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                let line = std::mem::take(&mut self.rest);
                if !line.is_empty() {
                    self.ready.push_back(line.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let mut lines = Lines::default();
        for piece in ["{\"a\"", ":1}\n{\"b\":2}\n\n{", "}\n"] {
            lines.push(piece.as_bytes());
        }
        let all: Vec<_> = lines
            .ready
            .iter()
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        assert_eq!(all, ["{\"a\":1}", "{\"b\":2}", "{}"]);
        assert!(lines.rest.is_empty());
    }

    #[test]
    fn targets_are_escaped() {
        assert_eq!(escape("10.0.0.1:80", true), "10.0.0.1:80");
        assert_eq!(escape("unix:%2Frun%2Fa b", true), "unix:%2Frun%2Fa%20b");
        assert_eq!(escape("5s&strict=true", false), "5s%26strict%3Dtrue");
    }
}
