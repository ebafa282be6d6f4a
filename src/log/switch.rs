//! `[log]` at work: the level and the form of what the process says of itself, changed by a swap while it runs. The
//! process has one such log, so there is one switch.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::Lines;
use crate::config::log::{LogFormat, LogLevel, LogSpec};

static SWITCH: OnceLock<Switch> = OnceLock::new();

struct Switch {
    json: Arc<AtomicBool>,
    /// `None`: the command line or the environment has fixed the level.
    level: Option<reload::Handle<EnvFilter, Registry>>,
    now: Mutex<LogSpec>,
}

/// Sends what the process says to `lines`. `fixed`: the level, whatever `[log]` says.
///
/// Does nothing where whoever embeds us has a log already.
pub fn install(lines: Lines, fixed: Option<EnvFilter>, colour: bool) {
    let json = Arc::new(AtomicBool::new(false));
    let shape = Shape {
        json: json.clone(),
        as_text: tracing_subscriber::fmt::format(),
        as_json: tracing_subscriber::fmt::format()
            .json()
            .with_current_span(false)
            .with_span_list(false),
    };
    let is_fixed = fixed.is_some();
    let (filter, handle) = reload::Layer::new(fixed.unwrap_or_else(|| filter(LogLevel::Info)));
    let layer = tracing_subscriber::fmt::layer()
        .event_format(shape)
        .with_writer(lines.coloured(colour))
        .with_ansi(colour);
    if tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init()
        .is_err()
    {
        return;
    }
    let switch = Switch {
        json,
        level: (!is_fixed).then_some(handle),
        now: Mutex::default(),
    };
    // Only the first subscriber comes here.
    let _ = SWITCH.set(switch);
}

/// A document with this `[log]` runs from now on.
pub fn adopt(spec: &LogSpec) {
    let Some(switch) = SWITCH.get() else {
        return;
    };
    let mut now = switch.now.lock();
    let before = std::mem::replace(&mut *now, *spec);
    switch
        .json
        .store(spec.format == LogFormat::Json, Ordering::Relaxed);
    if before.level != spec.level
        && let Some(level) = &switch.level
        && let Err(error) = level.reload(filter(spec.level))
    {
        tracing::error!(%error, "the level of the log could not be changed");
    }
}

/// What is said of our own doings; of the libraries' never more than info.
fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::new(match level {
        LogLevel::Debug => "info,evergate=debug",
        LogLevel::Trace => "info,evergate=trace",
        other => other.word(),
    })
}

/// Both forms; the switch chooses.
struct Shape {
    json: Arc<AtomicBool>,
    as_text: Format<Full>,
    as_json: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for Shape
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.json.load(Ordering::Relaxed) {
            self.as_json.format_event(context, writer, event)
        } else {
            self.as_text.format_event(context, writer, event)
        }
    }
}
