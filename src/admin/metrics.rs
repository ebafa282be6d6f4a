//! `GET /metrics`: the figures as OpenMetrics text, which Prometheus and most others read. A metric that another part
//! of the process counts gets its field in `supervisor::Figures` and its lines here.

use std::collections::HashMap;
use std::fmt;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::App;
use super::control::Control;
use super::media;
use super::problem::{Problem, Refusal};
use super::query::Query;
use crate::metrics::cell::Totals;
use crate::supervisor::Figures;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(crate) async fn metrics<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    let page = page(app.control().figures()).map_err(|fmt::Error| {
        let detail = "the metrics could not be written";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    })?;
    let kind = HeaderValue::from_static(CONTENT_TYPE);
    Ok(media::answer(StatusCode::OK, kind, page))
}

fn page(figures: Figures) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(figures)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page(Figures);

/// Labels of a sample; a target's, a route's.
type Labels<'a> = [(&'static str, &'a str)];

/// What a metric is called and says, and its samples.
struct Writer<'e>(DescriptorEncoder<'e>);

impl Writer<'_> {
    fn begin<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn counters<'a, L: AsRef<Labels<'a>>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Counter)?;
        for (labels, value) in samples {
            // A whole number is written as one.
            sample(&mut metric, labels.as_ref(), |sample| {
                if value.fract() == 0.0 && value >= 0.0 {
                    sample.encode_counter::<NoLabels, u64, f64>(&(value as u64), None)
                } else {
                    sample.encode_counter::<NoLabels, f64, f64>(&value, None)
                }
            })?;
        }
        Ok(())
    }

    fn gauges<'a, L: AsRef<Labels<'a>>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Gauge)?;
        for (labels, value) in samples {
            sample(&mut metric, labels.as_ref(), |sample| {
                sample.encode_gauge(&value)
            })?;
        }
        Ok(())
    }

    fn histograms<'a, 't, L: AsRef<Labels<'a>>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, &'t Totals)>,
    ) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Histogram)?;
        for (labels, totals) in samples {
            let buckets = totals.histogram();
            let count = buckets.iter().map(|(_, n)| n).sum();
            sample(&mut metric, labels.as_ref(), |sample| {
                let (sum, exemplars) = (totals.seconds(), None::<&Exemplars>);
                sample.encode_histogram(sum, count, &buckets, exemplars)
            })?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [([], value as f64)])
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [([], value)])
    }
}

/// Requests that stand for a bucket: none are kept.
type Exemplars = HashMap<usize, Exemplar<NoLabels, f64>>;

/// Writes a sample with these labels, if there are any.
fn sample(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels<'_>,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() {
        return write(metric);
    }
    write(&mut metric.encode_family(&labels)?)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct NoLabels;

impl EncodeLabelSet for NoLabels {
    fn encode(&self, _: &mut prometheus_client::encoding::LabelSetEncoder<'_>) -> fmt::Result {
        Ok(())
    }
}

/// The classes of a status, as the label `code` has them.
const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer(encoder);
        self.requests(&mut to)?;
        self.targets(&mut to)?;
        self.connections(&mut to)?;
        self.sessions(&mut to)?;
        self.swaps(&mut to)?;
        self.process(&mut to)
    }
}

impl Page {
    fn requests(&self, to: &mut Writer<'_>) -> fmt::Result {
        let routes = &self.0.routes;
        let each = || {
            routes
                .iter()
                .map(|r| ([("server", &*r.server), ("route", &*r.route)], &r.totals))
        };
        let codes = each().flat_map(|([server, route], totals)| {
            let labelled =
                move |(code, n): (&'static str, u64)| ([server, route, ("code", code)], n as f64);
            CODES
                .into_iter()
                .zip(totals.ended)
                .filter(|(_, n)| *n > 0)
                .map(labelled)
        });
        to.counters("evergate_http_requests", "Requests that have ended, by class of status (a client that left before the answer: 4xx).", codes)?;
        to.gauges(
            "evergate_http_requests_in_flight",
            "Requests in progress, open websockets included.",
            each().map(|(labels, t)| (labels, t.in_flight())),
        )?;
        to.histograms(
            "evergate_http_request_duration_seconds",
            "From a request's head to the end of its response.",
            each(),
        )?;
        to.counters(
            "evergate_http_request_bytes",
            "Bytes of request bodies that were sent on.",
            each().map(|(labels, t)| (labels, t.received as f64)),
        )?;
        to.counters(
            "evergate_http_response_bytes",
            "Bytes of response bodies.",
            each().map(|(labels, t)| (labels, t.sent as f64)),
        )
    }

    fn targets(&self, to: &mut Writer<'_>) -> fmt::Result {
        let targets = &self.0.targets;
        let each = || {
            targets
                .iter()
                .map(|t| ([("upstream", &*t.upstream), ("target", &*t.target)], t))
        };
        let codes = each().flat_map(|([upstream, target], t)| {
            let labelled = move |(code, n): (&'static str, u64)| {
                ([upstream, target, ("code", code)], n as f64)
            };
            CODES
                .into_iter()
                .zip(t.totals.ended)
                .filter(|(_, n)| *n > 0)
                .map(labelled)
        });
        to.counters(
            "evergate_target_responses",
            "Responses of a target that have ended, by class of status.",
            codes,
        )?;
        to.counters(
            "evergate_target_unanswered",
            "Tries on a target that ended without a response: it failed, or the client left.",
            each().map(|(labels, t)| (labels, t.totals.failed as f64)),
        )?;
        to.counters(
            "evergate_target_sessions",
            "TCP sessions with a target that have ended.",
            each()
                .filter(|(_, t)| t.totals.sessions > 0)
                .map(|(labels, t)| (labels, t.totals.sessions as f64)),
        )?;
        to.gauges(
            "evergate_target_requests_in_flight",
            "Requests that a target has, open websockets and TCP sessions included.",
            each().map(|(labels, t)| (labels, t.totals.in_flight())),
        )?;
        to.histograms(
            "evergate_target_request_duration_seconds",
            "From a request's head to the end of its response, by the target that gave it.",
            each()
                .filter(|(_, t)| t.totals.begun > 0)
                .map(|(labels, t)| (labels, &t.totals)),
        )?;
        to.counters(
            "evergate_target_response_bytes",
            "Bytes of response bodies and sessions, by the target that gave them.",
            each().map(|(labels, t)| (labels, t.totals.sent as f64)),
        )?;
        to.gauges(
            "evergate_target_up",
            "1 if requests may go there.",
            each().map(|(labels, t)| (labels, t.up.into())),
        )?;
        to.gauges(
            "evergate_target_connections",
            "Open connections, idle ones included.",
            each().map(|(labels, t)| (labels, t.connections)),
        )?;
        to.gauges(
            "evergate_target_connections_idle",
            "Connections that wait for a request.",
            each().map(|(labels, t)| (labels, t.idle)),
        )
    }

    fn connections(&self, to: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.0;
        let each = || {
            figures
                .listeners
                .iter()
                .map(|l| ([("listener", &*l.address)], l))
        };
        to.gauge(
            "evergate_connections",
            "Open client connections.",
            figures.connections,
        )?;
        to.counter(
            "evergate_connections_accepted",
            "Client connections accepted.",
            figures.accepted,
        )?;
        to.gauges(
            "evergate_listener_connections",
            "Open client connections of an address.",
            each().map(|(labels, l)| (labels, l.connections)),
        )?;
        to.counters(
            "evergate_listener_refused",
            "Client connections that were closed at once because of a limit.",
            each().map(|(labels, l)| (labels, l.refused as f64)),
        )?;
        to.counters(
            "evergate_tls_handshakes",
            "TLS handshakes with clients.",
            [
                ("full", figures.handshakes.full),
                ("resumed", figures.handshakes.resumed),
                ("failed", figures.handshakes.failed.values().sum()),
            ]
            .map(|(result, n)| ([("result", result)], n as f64)),
        )?;
        to.counters(
            "evergate_tls_handshakes_failed",
            "TLS handshakes with clients that came to nothing, by reason.",
            figures
                .handshakes
                .failed
                .iter()
                .map(|(reason, n)| ([("reason", reason.as_str())], *n as f64)),
        )?;
        to.gauge(
            "evergate_websockets",
            "Open websockets.",
            figures.open_websockets,
        )?;
        to.counter(
            "evergate_websockets_opened",
            "Websockets begun.",
            figures.websockets,
        )
    }

    fn sessions(&self, to: &mut Writer<'_>) -> fmt::Result {
        let kinds = || {
            let all = self.0.sessions.iter();
            all.map(|(kind, totals)| ([("kind", kind.name())], totals))
        };
        to.gauges(
            "evergate_sessions",
            "Open long flows: websockets, sessions of TCP listeners and forward proxies.",
            kinds().map(|(labels, t)| (labels, t.open)),
        )?;
        to.counters(
            "evergate_sessions_opened",
            "Long flows begun.",
            kinds().map(|(labels, t)| (labels, t.opened as f64)),
        )?;
        let names = || {
            let all = self.0.session_names.iter();
            all.map(|((kind, name), totals)| ([("kind", kind.name()), ("name", &**name)], totals))
        };
        to.counters(
            "evergate_session_received_bytes",
            "Bytes that came from clients in long flows, by the table they came in by; those of open ones too.",
            names().map(|(labels, t)| (labels, t.received as f64)),
        )?;
        to.counters(
            "evergate_session_sent_bytes",
            "Bytes that went to clients in long flows, by the table they came in by; those of open ones too.",
            names().map(|(labels, t)| (labels, t.sent as f64)),
        )
    }

    fn swaps(&self, to: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.0;
        to.gauge(
            "evergate_generation",
            "The generation that serves; 0: none.",
            figures.generation,
        )?;
        to.gauge(
            "evergate_generations",
            "Generations that are not gone yet.",
            figures.generations,
        )?;
        to.counters(
            "evergate_swaps",
            "Swaps by outcome, the one of the start included.",
            figures
                .swaps
                .iter()
                .map(|(outcome, n)| ([("outcome", *outcome)], *n as f64)),
        )?;
        to.histograms(
            "evergate_swap_duration_seconds",
            "From the turn of a swap to its commit.",
            [([], &figures.swap_time)],
        )
    }

    fn process(&self, to: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.0;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        to.gauges("evergate_build", "The version that runs.", [(version, 1)])?;
        to.counters(
            "evergate_access_log_dropped",
            "Lines of an access log that could not be written.",
            figures
                .access_logs
                .iter()
                .map(|(path, n)| ([("path", path.as_str())], *n as f64)),
        )?;
        to.counter(
            "evergate_panics",
            "Panics caught in connections and requests.",
            figures.panics,
        )?;
        to.gauge(
            "evergate_tasks",
            "Alive tasks on all runtimes.",
            figures.tasks,
        )?;
        to.gauge(
            "evergate_uptime_seconds",
            "Since the start.",
            figures.uptime.as_secs(),
        )?;
        if let Some(cpu) = figures.cpu {
            to.counters(
                "process_cpu_seconds",
                "User and system time.",
                [([], cpu.as_secs_f64())],
            )?;
        }
        if let Some(bytes) = figures.resident_bytes {
            to.gauge("process_resident_memory_bytes", "Resident memory.", bytes)?;
        }
        if let Some(descriptors) = figures.descriptors {
            to.gauge("process_open_fds", "Open descriptors.", descriptors)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::cell::{Outcome, Series};
    use crate::supervisor::{RouteFigures, TargetFigures};

    #[test]
    fn a_page_has_each_metric_once_and_its_labels_escaped() {
        let series = Series::new(2);
        for (worker, status) in [(0, 200), (1, 200), (1, 404)] {
            series.cell(worker).begin();
            series.cell(worker).end(&Outcome {
                status,
                took: Duration::from_millis(3),
                sent: 100,
            });
        }
        let totals = series.totals().unwrap();
        let text = page(Figures {
            routes: vec![RouteFigures {
                server: "web".into(),
                route: "api".into(),
                totals: totals.clone(),
            }],
            targets: vec![TargetFigures {
                upstream: "api".into(),
                target: "unix:/a\"\\b".into(),
                up: true,
                connections: 2,
                idle: 1,
                totals,
            }],
            cpu: Some(Duration::from_millis(1500)),
            ..Figures::default()
        })
        .unwrap();
        for line in [
            "# TYPE evergate_http_requests counter",
            "evergate_http_requests_total{server=\"web\",route=\"api\",code=\"2xx\"} 2",
            "evergate_http_requests_total{server=\"web\",route=\"api\",code=\"4xx\"} 1",
            "evergate_http_request_duration_seconds_bucket{le=\"0.0025\",server=\"web\",route=\"api\"} 0",
            "evergate_http_request_duration_seconds_bucket{le=\"0.005\",server=\"web\",route=\"api\"} 3",
            "evergate_http_request_duration_seconds_bucket{le=\"+Inf\",server=\"web\",route=\"api\"} 3",
            "evergate_http_request_duration_seconds_count{server=\"web\",route=\"api\"} 3",
            "evergate_http_response_bytes_total{server=\"web\",route=\"api\"} 300",
            "evergate_target_up{upstream=\"api\",target=\"unix:/a\\\"\\\\b\"} 1",
            "process_cpu_seconds_total 1.5",
            "evergate_generation 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let mut types: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }
}
