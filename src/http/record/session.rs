//! The line of a long flow that is no request: written when it is over, however that comes, in the log of the generation in
//! which it began.

use std::borrow::Cow;
use std::sync::Arc;

use super::{AccessLog, Late};
use crate::config::template::{Source, Var};
use crate::http::vars::or_empty;
use crate::session::{End, Info, Session};

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
        let view = self.log.as_ref().and_then(|log| log.view(self.worker));
        let Some(view) = view else {
            return;
        };
        let flow = Flow {
            info: self.session.info(),
            end: self.end,
        };
        let format = &view.format;
        view.sink.put(view.worker, |out, stamp| {
            format.session(&flow, stamp, out);
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
