//! The events of one swap as they happen: a line of JSON each (`application/x-ndjson`) or server-sent events. Each
//! event is a body frame of its own, so it leaves as soon as it is there. Nothing is buffered here: a slow reader
//! holds an index into the supervisor's log, and a reader that leaves is dropped.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use futures_util::stream;

use super::control::Events;
use super::media::{self, Media};
use crate::supervisor::SwapRecord;
use crate::supervisor::event::{Event, Phase};

struct Reader<E> {
    events: E,
    form: Media,
    /// Also ends after `committed`.
    committed_is_enough: bool,
    /// Told when the log no longer has the swap.
    remembered: Option<Arc<SwapRecord>>,
    begun: bool,
    done: bool,
}

/// A 200 that runs to the terminal event, or to `committed`. `remembered` is the answer of a retry.
pub(crate) fn answer<E: Events>(
    events: E,
    form: Media,
    committed_is_enough: bool,
    remembered: Option<Arc<SwapRecord>>,
) -> Response<Body> {
    let reader = Reader {
        events,
        form,
        committed_is_enough,
        remembered,
        begun: false,
        done: false,
    };
    let frames = stream::unfold(reader, |mut reader| async move {
        let frame = reader.next().await?;
        Some((Ok::<_, Infallible>(frame), reader))
    });
    media::answer(
        StatusCode::OK,
        form.content_type(),
        Body::from_stream(frames),
    )
}

impl<E: Events> Reader<E> {
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let event = match self.events.next().await {
            Some(event) => event,
            None if self.begun => return None,
            None => Arc::new(retold(self.remembered.as_deref()?)),
        };
        self.begun = true;
        self.done = event.phase.is_terminal()
            || (self.committed_is_enough && event.phase == Phase::Committed);
        write(&event, self.form)
    }
}

/// One event as text.
fn write(event: &Event, form: Media) -> Option<Bytes> {
    let json = serde_json::to_string(event).ok()?;
    let text = match form {
        Media::EventStream => {
            let phase = media::name(event.phase);
            format!("id: {}\nevent: {phase}\ndata: {json}\n\n", event.seq)
        }
        _ => format!("{json}\n"),
    };
    Some(text.into())
}

/// The last event of a swap that the log has let go: position 0, all else as it was.
fn retold(record: &SwapRecord) -> Event {
    Event {
        seq: 0,
        at: record.at.clone(),
        swap: record.swap,
        kind: record.kind,
        generation: record.generation.unwrap_or(0),
        phase: record.phase,
        elapsed_us: 0,
        source: None,
        bytes: None,
        warnings: Some(record.warnings.clone()),
        errors: (!record.errors.is_empty()).then(|| record.errors.clone()),
        plan: record.plan.clone(),
        bound: None,
        previous: record.previous,
        remaining: None,
        closed: None,
        outcome: record.outcome,
        status: record.status,
        problem: record.problem.clone(),
        detail: record.detail.clone(),
    }
}
