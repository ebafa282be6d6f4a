//! What one request leaves behind: its id, its counts, and its line in the access log. The record lives as long as the
//! request does, in the response's body or in the tunnel that the connection became; its drop is the request's end,
//! however that comes, so no way of ending is forgotten.
//!
//! A request reads the clock at its start and its end and adds to counters that only its worker writes. A line costs an
//! allocation and the lane of its worker (see `log::sink`).

pub mod format;
pub mod id;
pub mod session;

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Response, Uri};

use super::body::ResponseBody;
use super::connection::Connection;
use super::headers::scheme_text;
use super::vars::{Vars, header, or_empty};
use crate::config::http::FiltersSpec;
use crate::config::log::{AccessLogSpec, LogPath};
use crate::config::scalar::TargetAddr;
use crate::config::template::{Source, Var};
use crate::log::sink::{Opened, Sink, Writers};
use crate::metrics::cell::{Cell, Outcome, Series};
use crate::registry::Registry;
use crate::upstream::Target;
use format::{Asked, Format};

/// The status in counts and lines of a request whose client left before there was an answer: nobody was sent it.
pub const CLIENT_GONE: u16 = 499;

/// Server and route, by name; a route without a name counts with its server, a request that no server takes with nobody.
pub type SeriesKey = (Arc<str>, Arc<str>);

/// What records keep over generations, by identity. One per process.
#[derive(Debug)]
pub struct Shared {
    pub series: Registry<SeriesKey, Series>,
    pub sinks: Registry<LogPath, Sink>,
    writers: Arc<Writers>,
    workers: usize,
}

impl Shared {
    pub fn new(writers: Arc<Writers>, workers: usize) -> Shared {
        Shared {
            series: Registry::default(),
            sinks: Registry::default(),
            writers,
            workers: workers.max(1),
        }
    }

    /// See [`Registry::sweep`].
    pub fn sweep(&self) {
        self.series.sweep();
        self.sinks.sweep();
    }

    /// The access log that a document asks for.
    ///
    /// # Errors
    /// When its file cannot be opened; also where it is open already, for it may have become unwritable.
    pub fn access_log(&self, spec: &AccessLogSpec) -> io::Result<AccessLog> {
        let opened = Opened::open(&spec.path)?;
        let sink = match self.sinks.get(&spec.path) {
            Some(alive) => alive,
            None => {
                let started = self.writers.start(opened, self.workers)?;
                self.sinks.lease(&spec.path, || started)
            }
        };
        let format = Arc::new(Format::new(&spec.format));
        let view = |worker| {
            Arc::new(View {
                worker,
                sink: sink.clone(),
                format: format.clone(),
                sample: spec.sample,
            })
        };
        Ok(AccessLog((0..self.workers).map(view).collect()))
    }

    /// Opens the files of all access logs again.
    pub fn reopen(&self) {
        self.writers.reopen();
    }
}

/// One generation's access log.
#[derive(Debug)]
pub struct AccessLog(Box<[Arc<View>]>);

impl AccessLog {
    /// That of a worker, if the one who asks gets a line.
    fn view(&self, worker: usize) -> Option<&Arc<View>> {
        let views = &self.0;
        views
            .get(worker % views.len().max(1))
            .filter(|view| view.wants())
    }
}

/// The access log as one worker's requests hold it: a count of references that no other worker touches.
#[derive(Debug)]
#[repr(align(128))]
struct View {
    worker: usize,
    sink: Arc<Sink>,
    format: Arc<Format>,
    /// Share of the requests that get a line.
    sample: f64,
}

impl View {
    fn wants(&self) -> bool {
        self.sample >= 1.0 || fastrand::f64() < self.sample
    }
}

/// What a generation is compiled with.
#[derive(Debug, Clone, Copy)]
pub struct Recording<'a> {
    pub shared: &'a Shared,
    pub log: Option<&'a Arc<AccessLog>>,
}

impl Recording<'_> {
    /// For the requests of a route, or for those of a server that no route takes.
    pub fn watch(
        &self,
        server: &Arc<str>,
        route: Option<&Arc<str>>,
        filters: &FiltersSpec,
    ) -> Watch {
        let logs = filters.access_log.unwrap_or(true);
        let route = route.cloned().unwrap_or_else(|| "".into());
        let make = || Series::new(self.shared.workers);
        Watch {
            series: self.shared.series.lease(&(server.clone(), route), make),
            log: self.log.filter(|_| logs).cloned(),
        }
    }
}

/// Where the requests of one route are counted and written down.
#[derive(Debug)]
pub struct Watch {
    series: Arc<Series>,
    log: Option<Arc<AccessLog>>,
}

impl Watch {
    fn view(&self, worker: usize) -> Option<&Arc<View>> {
        self.log.as_ref()?.view(worker)
    }

    /// A request that could not be read is answered with `status`.
    pub fn refused(&self, connection: &Connection, generation: u64, status: u16) {
        let mut record = Record::new();
        let stranger = Stranger {
            connection,
            head: None,
            id: record.id(),
            generation,
        };
        record.begin(self, connection.worker.index, &stranger, None);
        record.status = status;
    }
}

/// What one request leaves behind.
#[derive(Debug)]
pub struct Record {
    began: Instant,
    id: Option<HeaderValue>,
    /// Whom authentication found.
    pub user: Option<Arc<str>>,
    /// 0: there is no answer yet.
    status: u16,
    /// Of a tunnel.
    received: Option<u64>,
    sent: u64,
    cell: Option<Arc<Cell>>,
    line: Option<Box<Line>>,
    over: bool,
}

/// A line that was begun.
#[derive(Debug)]
struct Line {
    view: Arc<View>,
    text: Vec<u8>,
    upstream: Option<Arc<str>>,
    target: Option<Arc<Target>>,
}

/// What only the end of a request can tell.
#[derive(Debug, Clone, Copy)]
pub struct Late<'a> {
    pub status: u16,
    pub took: Duration,
    /// Not counted for each request.
    pub received: Option<u64>,
    pub sent: u64,
    pub upstream: &'a str,
    pub target: Option<&'a TargetAddr>,
    pub user: &'a str,
}

impl Record {
    /// Of a request that begins now.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Record {
        Record {
            began: Instant::now(),
            id: None,
            user: None,
            status: 0,
            received: None,
            sent: 0,
            cell: None,
            line: None,
            over: false,
        }
    }

    /// Its id, made now if it has none.
    pub fn id(&mut self) -> HeaderValue {
        self.id.get_or_insert_with(id::make).clone()
    }

    /// The request's place is known: from here on it is counted there.
    pub fn place(&mut self, watch: &Watch, vars: &Vars<'_>) {
        let context = vars.context;
        self.id = Some(context.request_id.clone());
        let asked = Asked {
            method: &vars.parts.method,
            uri: context.uri,
            whole: context.proxied,
            version: context.version,
        };
        self.begin(watch, context.connection.worker.index, vars, Some(asked));
    }

    /// The same for a request that was not admitted.
    pub fn place_stranger(
        &mut self,
        watch: &Watch,
        connection: &Connection,
        head: (&Parts, &Uri),
        generation: u64,
    ) {
        let stranger = Stranger {
            connection,
            head: Some(head),
            id: self.id(),
            generation,
        };
        let asked = Asked {
            method: &head.0.method,
            uri: head.1,
            whole: false,
            version: head.0.version,
        };
        self.begin(watch, connection.worker.index, &stranger, Some(asked));
    }

    fn begin(
        &mut self,
        watch: &Watch,
        worker: usize,
        source: &impl Source,
        asked: Option<Asked<'_>>,
    ) {
        let cell = watch.series.cell(worker);
        cell.begin();
        self.cell = Some(cell.clone());
        self.line = watch.view(worker).map(|view| {
            Box::new(Line {
                text: view.format.begin(source, asked),
                view: view.clone(),
                upstream: None,
                target: None,
            })
        });
    }

    /// Where the bytes of the request's body are counted.
    pub fn cell(&self) -> Option<&Arc<Cell>> {
        self.cell.as_ref()
    }

    /// It goes to this upstream.
    pub fn heads_for(&mut self, upstream: Option<&Arc<str>>) {
        if let Some(line) = &mut self.line {
            line.upstream = upstream.cloned();
        }
    }

    /// It has an answer.
    pub fn answered(&mut self, response: &Response<ResponseBody>) {
        self.status = response.status().as_u16();
        if let Some(target) = response.body().target() {
            self.given_by(target);
        }
    }

    /// It has become a tunnel to this target.
    pub fn given_by(&mut self, target: &Arc<Target>) {
        if let Some(line) = &mut self.line {
            line.upstream = Some(target.key().0.clone());
            line.target = Some(target.clone());
        }
    }

    /// So many bytes were handed to the connection.
    pub fn add_sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// A tunnel has come to its end; bytes from and to the client.
    pub fn tunnelled(&mut self, received: u64, sent: u64) {
        if let Some(cell) = &self.cell {
            cell.receive(received);
        }
        self.received = Some(received);
        self.sent += sent;
    }

    fn late(&self, took: Duration) -> Late<'_> {
        let line = self.line.as_deref();
        Late {
            status: self.status,
            took,
            received: self.received,
            sent: self.sent,
            upstream: line.and_then(|line| line.upstream.as_deref()).unwrap_or(""),
            target: line
                .and_then(|line| line.target.as_ref())
                .map(|t| &t.key().1),
            user: self.user.as_deref().unwrap_or(""),
        }
    }

    /// The request is over: counts it, writes its line. `None` if that was done before.
    pub fn finish(&mut self) -> Option<Outcome> {
        if std::mem::replace(&mut self.over, true) {
            return None;
        }
        if self.status == 0 {
            self.status = CLIENT_GONE;
        }
        let took = self.began.elapsed();
        let outcome = Outcome {
            status: self.status,
            took,
            sent: self.sent,
        };
        if let Some(cell) = &self.cell {
            cell.end(&outcome);
        }
        if let Some(line) = &self.line {
            let (view, late) = (&line.view, self.late(took));
            view.sink.put(view.worker, |out, stamp| {
                view.format.complete(&line.text, &late, stamp, out);
            });
        }
        Some(outcome)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A request that was not admitted: what can be said of it without believing it.
#[derive(Debug)]
struct Stranger<'a> {
    connection: &'a Connection,
    head: Option<(&'a Parts, &'a Uri)>,
    id: HeaderValue,
    generation: u64,
}

impl Source for Stranger<'_> {
    fn var(&self, var: &Var) -> Cow<'_, str> {
        let connection = self.connection;
        match (var, self.head) {
            (Var::ClientIp, _) => or_empty(connection.peer.ip()),
            (Var::ClientPort, _) => or_empty(connection.peer.address().map(|a| a.port())),
            (Var::Port, _) => or_empty(connection.local.map(|a| a.port())),
            (Var::Scheme, _) => scheme_text(connection.scheme()).into(),
            (Var::RequestId, _) => String::from_utf8_lossy(self.id.as_bytes()),
            (Var::Generation, _) => self.generation.to_string().into(),
            (Var::Method, Some((parts, _))) => parts.method.as_str().into(),
            (Var::Uri, Some((_, uri))) => uri
                .path_and_query()
                .map_or_else(|| uri.to_string().into(), |target| target.as_str().into()),
            (Var::Path, Some((_, uri))) => uri.path().into(),
            (Var::Query, Some((_, uri))) => uri.query().unwrap_or_default().into(),
            (Var::Header(name), Some((parts, _))) => header(&parts.headers, name),
            _ => "".into(),
        }
    }
}
