//! The line of a long flow that is no request: written when it is over, however that comes, in the log of the generation in
//! which it began; also of one that came to nothing.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{AccessLog, Late, View};
use crate::config::template::{Source, Var};
use crate::generation::Watch;
use crate::http::vars::or_empty;
use crate::session::{End, Info, Kind, Session, Start};

/// Writes the line of a session when it is dropped.
#[derive(Debug)]
pub struct SessionLine<'s> {
    log: Option<Arc<AccessLog>>,
    worker: usize,
    session: &'s Session,
    end: End,
}

impl<'s> SessionLine<'s> {
    /// Of a session of this worker; `log`: `None`, there is no line.
    pub fn new(log: Option<Arc<AccessLog>>, worker: usize, session: &'s Session) -> Self {
        SessionLine {
            log,
            worker,
            session,
            end: End::Cut,
        }
    }

    /// It has ended.
    pub fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for SessionLine<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.log.as_ref().and_then(|log| log.view(self.worker)) {
            let info = self.session.info();
            view.flow(&Flow {
                info,
                end: self.end,
            });
        }
    }
}

/// Writes the line of what would have been a session of this worker and came to nothing; `began`: when it was asked for, `status`:
/// what HTTP would have answered.
pub fn came_to_nothing(
    log: Option<&Arc<AccessLog>>,
    worker: usize,
    kind: Kind,
    start: Start,
    began: Instant,
    status: u16,
) {
    if let Some(view) = log.and_then(|log| log.view(worker)) {
        let info = Info {
            id: 0,
            kind,
            client: start.client,
            user: start.user,
            listener: start.listener,
            route: start.route,
            upstream: start.upstream,
            destination: start.destination,
            generation: start.watch.as_ref().map(Watch::generation),
            age: began.elapsed(),
            idle: Duration::ZERO,
            received: 0,
            sent: 0,
            closing: false,
        };
        let end = End::Nothing(status);
        view.flow(&Flow { info, end });
    }
}

impl View {
    fn flow(&self, flow: &Flow) {
        self.sink.put(self.worker, |out, stamp| {
            self.format.session(flow, stamp, out);
        });
    }
}

/// What a line says.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) info: Info,
    pub(super) end: End,
}

impl Flow {
    pub(super) fn late(&self) -> Late<'_> {
        Late {
            status: self.end.status(),
            took: self.info.age,
            received: Some(self.info.received),
            sent: self.info.sent,
            upstream: self.info.upstream.as_deref().unwrap_or(""),
            target: None,
            user: self.info.user.as_deref().unwrap_or(""),
        }
    }

    pub(super) fn destination(&self) -> &str {
        self.info.destination.as_deref().unwrap_or("")
    }

    /// In the place of a request line: `TCP 10.0.0.5:5432`.
    pub(super) fn request_line(&self) -> String {
        let kind = self.info.kind.name().to_ascii_uppercase();
        match self.destination() {
            "" => kind,
            destination => format!("{kind} {destination}"),
        }
    }
}

impl Source for Flow {
    fn var(&self, var: &Var) -> Cow<'_, str> {
        let info = &self.info;
        match var {
            Var::ClientIp => or_empty(info.client.map(|client| client.ip())),
            Var::ClientPort => or_empty(info.client.map(|client| client.port())),
            Var::Scheme => info.kind.name().into(),
            Var::Server => info.listener.as_deref().unwrap_or("").into(),
            Var::Generation => info.generation.unwrap_or(0).to_string().into(),
            Var::Ended => self.end.word().into(),
            _ => "".into(),
        }
    }
}
