//! Filters at work, in their fixed order: `allow`/`deny`, `cors`, `rate_limit`, `basic_auth`, `forward_auth`,
//! `concurrency`, `body_limit`, `rewrite`, `headers`; on the way back `headers`, `cors`, `compress`. What a filter
//! answers itself goes the same way back as the action's answer.
//!
//! A request whose server and route have none asks one question, [`Filters::is_empty`].

mod access;
pub(super) mod basic_auth;
mod compress;
mod concurrency;
mod cors;
mod forward_auth;
mod headers;
pub(super) mod pace;
mod rate_limit;
mod rewrite;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use http::Response;
use http::request::Parts;
use tokio::time::Instant;

use super::Files;
use super::body::ResponseBody;
use super::error;
use super::request::RequestContext;
use super::vars::Vars;
use crate::config::http::FiltersSpec;
use crate::generation::Flight;
use crate::password;
use crate::registry::Registry;
use crate::upstream::Upstream;
use crate::upstream::error::{Error, Kind};
use access::Access;
use basic_auth::{BasicAuth, Look};
use concurrency::Concurrency;
use forward_auth::ForwardAuth;
use pace::{Deadline, Pace};
use rate_limit::RateLimits;

use compress::Compress;
pub use concurrency::Place;
use cors::Cors;
pub use headers::Edit;
use headers::Headers;
use rewrite::Rewrite;

/// What filters keep over generations, by identity. One per process.
#[derive(Debug, Default)]
pub struct Shared {
    limiters: Registry<Arc<str>, rate_limit::Limiter>,
    /// Of all that ask for passwords, not of filters alone.
    pub passwords: password::Shared,
    gates: Registry<Arc<str>, concurrency::Gate>,
    builds: AtomicU64,
}

impl Shared {
    /// See [`Registry::sweep`].
    pub fn sweep(&self) {
        self.limiters.sweep();
        self.gates.sweep();
    }

    /// Rises from one compilation to the next.
    fn next_build(&self) -> u64 {
        self.builds.fetch_add(1, Ordering::Relaxed)
    }
}

/// What filters are compiled with.
#[derive(Debug, Clone, Copy)]
pub struct Given<'g> {
    pub upstreams: &'g BTreeMap<Arc<str>, Arc<Upstream>>,
    pub files: &'g Files,
    pub shared: &'g Shared,
}

/// The compiled filters of a server or a route.
#[derive(Debug, Default)]
pub struct Filters {
    /// There are others than `body_limit`: asked of every request, the fields below are looked at only once.
    work: bool,
    /// Largest request body in bytes; `None`: no limit.
    pub body_limit: Option<u64>,
    /// For the whole exchange; `None`: no limit.
    pub timeout: Option<Duration>,
    access: Option<Access>,
    rate_limits: Option<RateLimits>,
    /// Those that count by user.
    user_limits: Option<RateLimits>,
    basic_auth: Option<BasicAuth>,
    forward_auth: Option<ForwardAuth>,
    concurrency: Option<Concurrency>,
    /// Bytes a second of a response's body.
    bandwidth: Option<u64>,
    cors: Option<Cors>,
    rewrite: Option<Rewrite>,
    headers: Option<Headers>,
    compress: Option<Compress>,
}

/// A request as filters see it and change it.
#[derive(Debug)]
pub struct Asking<'r, 'c> {
    pub context: &'r mut RequestContext<'c>,
    pub parts: &'r mut Parts,
    pub server: &'r str,
    pub route: Option<&'r str>,
    pub generation: u64,
    /// Tells a request that waits here that its generation ends.
    pub flight: &'r Flight,
}

impl Asking<'_, '_> {
    /// For templates.
    pub fn vars(&self) -> Vars<'_> {
        Vars {
            context: self.context,
            parts: self.parts,
            server: self.server,
            route: self.route,
            generation: self.generation,
        }
    }
}

/// What the way in leaves for the way back: fields to set, places to hold until the response has ended.
#[derive(Debug, Default)]
pub struct Passed {
    /// Held until the request has ended.
    pub place: Option<Place>,
    /// Until when the response must have ended, and how long that is.
    pub ends: Option<(Instant, Duration)>,
    /// Changes to the fields of the request, done where it goes out: behind all that the proxy takes away and sets. A field
    /// that is set in the request itself is taken for the client's.
    pub request: Vec<Edit>,
    /// To the fields of the response: those with variables, in their order.
    response: Vec<headers::Waiting>,
    /// When it came, if a field of the response tells its time.
    began: Option<std::time::Instant>,
    cors: cors::Asked,
    compress: compress::Wanted,
}

impl Passed {
    /// For a request whose response must have ended then.
    pub fn until(ends: Option<(Instant, Duration)>) -> Passed {
        Passed {
            ends,
            ..Passed::default()
        }
    }
}

/// The answer of a filter, instead of the action's.
pub type Refusal = Box<Response<ResponseBody>>;

impl Filters {
    /// Compiles; leases what outlives the generation.
    pub fn build(spec: &FiltersSpec, given: &Given<'_>) -> Filters {
        let shared = given.shared;
        let limits = spec.rate_limit.get().map_or(&[][..], |specs| specs);
        let [rate_limits, user_limits] = RateLimits::build(limits, shared);
        let basic_auth = spec.basic_auth.get();
        let forward_auth = spec.forward_auth.get();
        let concurrency = spec.concurrency.get();
        let mut filters = Filters {
            work: false,
            body_limit: spec.body_limit.flatten(),
            timeout: spec.timeout.flatten(),
            access: Access::build(spec),
            rate_limits,
            user_limits,
            basic_auth: basic_auth.map(|spec| BasicAuth::build(spec, given)),
            forward_auth: forward_auth.map(|spec| ForwardAuth::build(spec, given.upstreams)),
            concurrency: concurrency.map(|spec| Concurrency::build(spec, shared)),
            bandwidth: spec.bandwidth.flatten(),
            cors: Cors::build(spec),
            rewrite: Rewrite::build(spec),
            headers: Headers::build(spec),
            compress: Compress::build(spec),
        };
        filters.work = filters.is_any();
        filters
    }

    /// True if a request has nothing to do here but to obey `body_limit`.
    pub fn is_empty(&self) -> bool {
        !self.work
    }

    fn is_any(&self) -> bool {
        self.access.is_some()
            || self.rate_limits.is_some()
            || self.user_limits.is_some()
            || self.basic_auth.is_some()
            || self.forward_auth.is_some()
            || self.concurrency.is_some()
            || self.bandwidth.is_some()
            || self.timeout.is_some()
            || self.cors.is_some()
            || self.rewrite.is_some()
            || self.headers.is_some()
            || self.compress.is_some()
    }

    /// The way in.
    ///
    /// # Errors
    /// The answer of the filter that ends the request here.
    pub async fn admit(
        &self,
        mut asking: Asking<'_, '_>,
        passed: &mut Passed,
    ) -> Result<(), Refusal> {
        // What the way back must know, whoever answers: the request is gone by then.
        if let Some(cors) = &self.cors {
            passed.cors = cors.ask(asking.parts);
        }
        if let Some(compress) = &self.compress {
            passed.compress = compress.ask(asking.parts);
        }
        let entered = self.enter(&mut asking, passed).await;
        if let Some(headers) = &self.headers {
            headers.render(&asking.vars(), entered.is_ok(), passed);
        }
        entered
    }

    /// The filters that may refuse, in their order.
    async fn enter(&self, asking: &mut Asking<'_, '_>, passed: &mut Passed) -> Result<(), Refusal> {
        if let Some(access) = &self.access {
            access.admit(asking.context.client)?;
        }
        if let Some(cors) = &self.cors {
            cors.admit(&passed.cors)?;
        }
        if let Some(limits) = &self.rate_limits {
            limits.admit(asking)?;
        }
        if let Some(auth) = &self.basic_auth {
            let user = match auth.look(&asking.parts.headers)? {
                Look::Known(user) => user,
                // Boxed, as all that is seldom waited for: every request's future would carry its state.
                Look::Unknown(check) => Box::pin(unless_cut(check.run(), asking.flight)).await??,
            };
            asking.context.user = Some(user);
        }
        if let Some(auth) = &self.forward_auth {
            let flight = asking.flight;
            Box::pin(unless_cut(auth.ask(asking, passed), flight)).await??;
        }
        if let Some(limits) = &self.user_limits {
            limits.admit(asking)?;
        }
        if let Some(concurrency) = &self.concurrency {
            let place = match concurrency.enter() {
                Ok(place) => place,
                Err(Ok(waiting)) => Box::pin(unless_cut(waiting.place(), asking.flight)).await??,
                Err(Err(refusal)) => return Err(refusal),
            };
            passed.place = Some(place);
        }
        if let Some(rewrite) = &self.rewrite {
            rewrite.apply(asking, passed)?;
        }
        Ok(())
    }

    /// The way back, for answers of the action and of filters alike.
    pub fn back(&self, mut passed: Passed, response: &mut Response<ResponseBody>) {
        if let Some(headers) = &self.headers {
            let waiting = std::mem::take(&mut passed.response);
            headers.back(waiting, passed.began, response);
        }
        if let Some(cors) = &self.cors {
            cors.back(&mut passed.cors, response.headers_mut());
        }
        if let Some(compress) = &self.compress {
            compress.back(&passed.compress, response);
        }
        let pace = self.bandwidth.map(Pace::new);
        let ends = passed.ends.map(|(at, limit)| Deadline::new(at, limit));
        response.body_mut().limit(pace, ends);
    }
}

/// Waits for `work`, unless the request is told to end before.
async fn unless_cut<T>(work: impl Future<Output = T>, flight: &Flight) -> Result<T, Refusal> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        flight.poll_cut(cx).map(|()| {
            let detail = "cut at the drain deadline of its generation";
            let error = Error::us(Kind::DestinationUnavailable, detail);
            Err(Box::new(error::respond(&error)))
        })
    })
    .await
}

/// Routes without filters of their own share the server's.
pub(super) fn shared(
    spec: &FiltersSpec,
    server: (&FiltersSpec, &Arc<Filters>),
    given: &Given<'_>,
) -> Arc<Filters> {
    if spec == server.0 {
        return server.1.clone();
    }
    Arc::new(Filters::build(spec, given))
}
