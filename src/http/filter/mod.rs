//! Filters at work, in their fixed order: `allow`/`deny`, `cors`, `rate_limit`, `basic_auth`, `forward_auth`,
//! `concurrency`, `body_limit`, `rewrite`, `headers`; on the way back `headers`, `cors`, `compress`. What a filter
//! answers itself goes the same way back as the action's answer.
//!
//! A request whose server and route have none asks one question, [`Filters::is_empty`].

mod access;

use std::sync::Arc;

use http::Response;
use http::request::Parts;

use super::body::ResponseBody;
use super::request::RequestContext;
use super::vars::Vars;
use crate::config::http::FiltersSpec;
use access::Access;

/// What filters keep over generations, by identity. One per process.
#[derive(Debug, Default)]
pub struct Shared {}

/// The compiled filters of a server or a route.
#[derive(Debug, Default)]
pub struct Filters {
    /// Largest request body in bytes; `None`: no limit.
    pub body_limit: Option<u64>,
    access: Option<Access>,
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
pub struct Passed {}

/// The answer of a filter, instead of the action's.
pub type Refusal = Box<Response<ResponseBody>>;

impl Filters {
    /// Compiles; leases what outlives the generation.
    pub fn build(spec: &FiltersSpec, _shared: &Shared) -> Filters {
        Filters {
            body_limit: spec.body_limit.flatten(),
            access: Access::build(spec),
        }
    }

    /// True if a request has nothing to do here but to obey `body_limit`.
    pub fn is_empty(&self) -> bool {
        self.access.is_none()
    }

    /// The way in.
    ///
    /// # Errors
    /// The answer of the filter that ends the request here.
    pub async fn admit(&self, asking: Asking<'_, '_>, _passed: &mut Passed) -> Result<(), Refusal> {
        if let Some(access) = &self.access {
            access.admit(asking.context.client)?;
        }
        Ok(())
    }

    /// The way back, for answers of the action and of filters alike.
    pub fn back(&self, _passed: Passed, _response: &mut Response<ResponseBody>) {}
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
