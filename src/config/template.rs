//! `{host}`, `{header.x}` …: templates, parsed once when a document is checked, rendered per request through a
//! [`Source`] that the request's context implements. `{{` and `}}` are literal braces.

use std::borrow::Cow;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Var(Var),
}

/// A template variable (config.md, "Template variables"). Those of features that are not built are refused by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Var {
    ClientIp,
    ClientPort,
    Scheme,
    Host,
    Port,
    Method,
    Path,
    Query,
    Uri,
    Server,
    Route,
    Generation,
    Time,
    Header(::http::HeaderName),
    Cookie(String),
    QueryKey(String),
}

/// What renders a variable.
pub trait Source {
    /// The variable's text; empty where the request has none.
    fn var(&self, var: &Var) -> Cow<'_, str>;
}

impl Template {
    /// The whole text, if no variable is in it.
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(t)] => Some(t),
            _ => None,
        }
    }

    pub fn render(&self, source: &impl Source) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(t) => out.push_str(t),
                Part::Var(v) => out.push_str(&source.var(v)),
            }
        }
        out
    }
}
