//! Filters at work, in their fixed order: `allow`/`deny`, `cors`, `rate_limit`, `basic_auth`, `forward_auth`,
//! `concurrency`, `body_limit`, `rewrite`, `headers`; on the way back `headers`, `cors`, `compress`. What a filter
//! answers itself goes the same way back as the action's answer.
//!
//! A request whose server and route have none asks one question, [`Filters::is_empty`].

mod access;
mod compress;
mod cors;
mod headers;
mod rewrite;

use std::sync::Arc;

use http::Response;
use http::request::Parts;

use super::body::ResponseBody;
use super::request::RequestContext;
use super::vars::Vars;
use crate::config::http::FiltersSpec;
use access::Access;
use compress::Compress;
use cors::Cors;
pub use headers::Edit;
use headers::Headers;
use rewrite::Rewrite;

/// What filters keep over generations, by identity. One per process.
#[derive(Debug, Default)]
pub struct Shared {}

/// The compiled filters of a server or a route.
#[derive(Debug, Default)]
pub struct Filters {
    /// Largest request body in bytes; `None`: no limit.
    pub body_limit: Option<u64>,
    access: Option<Access>,
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

/// The answer of a filter, instead of the action's.
pub type Refusal = Box<Response<ResponseBody>>;

impl Filters {
    /// Compiles; leases what outlives the generation.
    pub fn build(spec: &FiltersSpec, _shared: &Shared) -> Filters {
        Filters {
            body_limit: spec.body_limit.flatten(),
            access: Access::build(spec),
            cors: Cors::build(spec),
            rewrite: Rewrite::build(spec),
            headers: Headers::build(spec),
            compress: Compress::build(spec),
        }
    }

    /// True if a request has nothing to do here but to obey `body_limit`.
    pub fn is_empty(&self) -> bool {
        self.access.is_none()
            && self.cors.is_none()
            && self.rewrite.is_none()
            && self.headers.is_none()
            && self.compress.is_none()
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
    }
}

/// Routes without filters of their own share the server's.
pub(super) fn shared(
    spec: &FiltersSpec,
    server: (&FiltersSpec, &Arc<Filters>),
    shared: &Shared,
) -> Arc<Filters> {
    if spec == server.0 {
        return server.1.clone();
    }
    Arc::new(Filters::build(spec, shared))
}
