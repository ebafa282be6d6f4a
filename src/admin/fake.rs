//! A supervisor of a few lines for the tests of the router: each swap commits at once, or stays open until the test
//! lets it go.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;

use super::control::{Control, Events};
use crate::config::admin::AdminSpec;
use crate::config::runtime::{Model, OnChange, RuntimeSpec};
use crate::config::scalar::ListenAddr;
use crate::document::Document;
use crate::session::Wanted;
use crate::supervisor::event::{Event, Kind, Outcome, Phase};
use crate::supervisor::{
    AdminBinding, AdminListener, CertificateList, Figures, LiveSession, RefreshRefused,
    RefreshRequest, Running, SessionList, Source, Status, SubmitError, SwapRecord, SwapRequest,
    TargetRefused, TargetRequest, TargetStatus, TunnelList,
};

pub(crate) const ETAG: &str = "\"e1\"";

/// A reload that committed and drained.
pub(crate) fn record(swap: u64) -> SwapRecord {
    SwapRecord {
        swap,
        kind: Kind::Reload,
        actor: "test".into(),
        at: "2026-01-01T00:00:00Z".into(),
        phase: Phase::Drained,
        done: true,
        outcome: Some(Outcome::Committed),
        status: Some(200),
        generation: Some(2),
        previous: Some(1),
        etag: Some("\"e2\"".into()),
        warnings: vec![],
        errors: vec![],
        problem: None,
        detail: None,
        plan: None,
        config: None,
    }
}

pub(crate) fn event(swap: u64, seq: u64, phase: Phase) -> Event {
    let value = json!({
        "seq": seq, "at": "2026-01-01T00:00:00Z", "swap": swap, "kind": "reload", "generation": 2,
        "phase": phase, "elapsed_us": 1
    });
    let mut event: Event = serde_json::from_value(value).unwrap();
    if phase == Phase::Committed || phase.is_terminal() {
        event.outcome = Some(Outcome::Committed);
        event.status = Some(200);
    }
    event
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<State>);

struct State {
    seen: Mutex<Vec<SwapRequest>>,
    records: Mutex<Vec<SwapRecord>>,
    running: Option<Arc<Running>>,
    binding: watch::Sender<Option<Arc<AdminBinding>>>,
    /// True once swaps may end.
    go: watch::Sender<bool>,
    refuse: Mutex<Option<SubmitError>>,
}

impl Fake {
    pub(crate) fn new() -> Fake {
        let spec = AdminSpec {
            listen: ListenAddr::Tcp("127.0.0.1:8837".parse().unwrap()),
            token: None,
            tokens: Default::default(),
            read_tokens: Default::default(),
            monitor: None,
            tls: None,
            allowed_hosts: vec![],
        };
        let runtime = RuntimeSpec {
            workers: 1,
            model: Model::PerCore,
            drain_timeout: std::time::Duration::from_secs(30),
            stop_delay: std::time::Duration::ZERO,
            on_change: OnChange::Drain,
            prepare_timeout: std::time::Duration::from_secs(30),
            history: 32,
            max_connections: 100,
            state_dir: None,
        };
        let normal = json!({
            "http": { "web": { "listen": [":8080"] } },
            "upstreams": { "api": { "targets": [{ "address": "10.0.0.1:80" }, { "address": "unix:/a/b" }] } }
        });
        let document = Document {
            tunnels: Default::default(),
            agents: Default::default(),
            admin: spec.clone(),
            runtime,
            log: Default::default(),
            access_log: None,
            http: Default::default(),
            tcp: Default::default(),
            forward: Default::default(),
            upstreams: Default::default(),
            normal,
            origins: Default::default(),
            whole: None,
            secrets: Default::default(),
        };
        let running = Some(Arc::new(Running {
            generation: 1,
            etag: ETAG.into(),
            document: Arc::new(document),
        }));
        let fake = Fake(Arc::new(State {
            seen: Mutex::default(),
            records: Mutex::default(),
            running,
            binding: watch::channel(None).0,
            go: watch::channel(true).0,
            refuse: Mutex::default(),
        }));
        fake.bind(spec);
        fake
    }

    /// Publishes an address of its own; returns it.
    pub(crate) fn bind(&self, spec: AdminSpec) -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Arc::new(AdminListener::Tcp(listener));
        self.0.binding.send_replace(Some(Arc::new(AdminBinding {
            generation: 1,
            spec,
            listener,
            tls: None,
            monitor: None,
        })));
        address
    }

    /// Publishes other settings for the same socket.
    pub(crate) fn settings(&self, change: impl FnOnce(&mut AdminSpec)) {
        let old = self.0.binding.borrow().clone().unwrap();
        let mut spec = old.spec.clone();
        change(&mut spec);
        let binding = AdminBinding {
            generation: 2,
            spec,
            listener: old.listener.clone(),
            tls: None,
            monitor: None,
        };
        self.0.binding.send_replace(Some(Arc::new(binding)));
    }

    pub(crate) fn unbind(&self) {
        self.0.binding.send_replace(None);
    }

    pub(crate) fn hold(&self) {
        self.0.go.send_replace(false);
    }

    pub(crate) fn release(&self) {
        self.0.go.send_replace(true);
    }

    pub(crate) fn refuse(&self, error: SubmitError) {
        *self.0.refuse.lock() = Some(error);
    }

    /// The requests queued so far.
    pub(crate) fn seen(&self) -> Vec<SwapRequest> {
        self.0.seen.lock().clone()
    }
}

impl Control for Fake {
    type Events = FakeEvents;

    fn submit(&self, request: SwapRequest) -> Result<u64, SubmitError> {
        if let Some(error) = *self.0.refuse.lock() {
            return Err(error);
        }
        let mut seen = self.0.seen.lock();
        let swap = seen.len() as u64 + 1;
        let mut record = record(swap);
        record.kind = request.kind;
        match (&request.source, request.kind) {
            (_, Kind::Stop) => (record.outcome, record.generation) = (Some(Outcome::Stopped), None),
            (Source::Body { bytes, .. }, _) if bytes.starts_with(b"panic") => panic!("asked for"),
            (Source::Body { bytes, .. }, _) if bytes.starts_with(b"bad") => {
                record.outcome = Some(Outcome::Rejected);
                (record.phase, record.status) = (Phase::Rejected, Some(422));
                (record.generation, record.problem) = (None, Some("invalid-document".into()));
                record.errors = vec![crate::config::Diagnostic {
                    pointer: "/http".into(),
                    file: None,
                    line: Some(3),
                    column: Some(1),
                    message: "unknown key `htp`".into(),
                    help: Some("did you mean `http`?".into()),
                    span: None,
                }];
            }
            (_, Kind::Adapt) => {
                (record.outcome, record.phase) = (Some(Outcome::Adapted), Phase::Adapted);
                (record.generation, record.config) = (None, Some(json!({ "http": {} })));
            }
            _ => {}
        }
        if request
            .if_match
            .as_deref()
            .is_some_and(|tag| tag != ETAG && tag != "*")
        {
            (record.outcome, record.phase) = (Some(Outcome::Rejected), Phase::Rejected);
            (record.status, record.problem) = (Some(412), Some("if-match".into()));
        }
        self.0.records.lock().push(record);
        seen.push(request);
        Ok(swap)
    }
    fn running(&self) -> Option<Arc<Running>> {
        self.0.running.clone()
    }
    fn swaps(&self) -> Vec<SwapRecord> {
        self.0.records.lock().iter().rev().cloned().collect()
    }
    fn swap(&self, id: u64) -> Option<SwapRecord> {
        self.0
            .records
            .lock()
            .iter()
            .find(|record| record.swap == id)
            .cloned()
    }
    fn follow(&self, swap: u64) -> FakeEvents {
        FakeEvents {
            fake: self.clone(),
            swap,
            at: 0,
        }
    }
    async fn wait(&self, swap: u64, _committed_is_enough: bool) -> Option<SwapRecord> {
        self.0.go.subscribe().wait_for(|go| *go).await.unwrap();
        self.swap(swap)
    }
    fn binding(&self) -> watch::Receiver<Option<Arc<AdminBinding>>> {
        self.0.binding.subscribe()
    }
    fn status(&self) -> Status {
        Status {
            version: "0.1.0".into(),
            api: 1,
            uptime_s: 1,
            generation: 1,
            generations: vec![],
            listeners: vec![],
            upstreams: vec![],
            workers: 1,
            model: "per-core".into(),
            connections: 0,
            requests: 0,
            descriptors: None,
            tasks: 0,
            resident_bytes: None,
            panics: 0,
            certificates: vec![],
            certificate_problems: vec![],
            handshakes: Default::default(),
            sessions: Default::default(),
        }
    }
    fn sessions(&self, _: &Wanted, _: u64, _: usize) -> SessionList {
        SessionList::default()
    }
    fn close_session(&self, _: u64) -> Option<LiveSession> {
        None
    }
    fn tunnels(&self) -> TunnelList {
        TunnelList::default()
    }
    fn certificates(&self) -> CertificateList {
        CertificateList::default()
    }
    async fn refresh_certificates(
        &self,
        request: RefreshRequest,
    ) -> Result<CertificateList, RefreshRefused> {
        match request.if_match.as_deref() {
            None | Some("*") | Some(ETAG) => Ok(CertificateList::default()),
            Some(_) => Err(RefreshRefused {
                status: 412,
                problem: "if-match",
                detail: "another".into(),
                errors: vec![],
            }),
        }
    }
    async fn set_target(&self, request: TargetRequest) -> Result<TargetStatus, TargetRefused> {
        Err(TargetRefused {
            status: 404,
            problem: "no-such-target",
            detail: request.target,
        })
    }
    fn figures(&self) -> Figures {
        Figures::default()
    }
    fn ready(&self) -> Result<(), &'static str> {
        let go = *self.0.go.borrow();
        go.then_some(()).ok_or("it does not go")
    }
}

pub(crate) struct FakeEvents {
    fake: Fake,
    swap: u64,
    at: usize,
}

impl Events for FakeEvents {
    async fn next(&mut self) -> Option<Arc<Event>> {
        let phases = [
            Phase::Received,
            Phase::Committed,
            Phase::Draining,
            Phase::Drained,
        ];
        let phase = *phases.get(self.at)?;
        if self.at > 0 {
            self.fake.0.go.subscribe().wait_for(|go| *go).await.ok()?;
        }
        self.at += 1;
        Some(Arc::new(event(self.swap, self.at as u64, phase)))
    }
}
