//! `headers`: changes of fields, compiled once. A change without variables has its value ready; those with variables are
//! rendered on the way in, where the request still has all it came with, and done where the fields go out: those of the
//! request behind everything that the proxy takes away and sets, those of the response behind all that answers. What only
//! the response knows is put in last.

use std::borrow::Cow;
use std::time::Instant;

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::Passed;
use crate::config::http::{EditSpec, FiltersSpec};
use crate::config::template::{Source, Template, Var};
use crate::http::body::ResponseBody;
use crate::http::host::Host;
use crate::http::text::field_value;

/// A change of one field that waits to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    Remove(HeaderName),
    /// This value, whatever there was.
    Set(HeaderName, HeaderValue),
    /// One line more.
    Add(HeaderName, HeaderValue),
}

impl Edit {
    pub fn apply(self, headers: &mut HeaderMap) {
        match self {
            Edit::Remove(name) => _ = headers.remove(name),
            Edit::Set(name, value) => _ = headers.insert(name, value),
            Edit::Add(name, value) => _ = headers.append(name, value),
        }
    }
}

/// The compiled `headers` of a server or a route, outermost first.
#[derive(Debug)]
pub(super) struct Headers {
    request: Vec<Compiled>,
    response: Vec<Compiled>,
    /// A value names what only the response knows.
    late: bool,
}

/// A change of the response whose value has variables, on its way from the request.
#[derive(Debug)]
pub(super) enum Waiting {
    Ready(Option<Edit>),
    /// What is left in it is the response's.
    Late(Compiled),
}

/// What a response knows.
struct Late<'a> {
    response: &'a Response<ResponseBody>,
    began: Option<Instant>,
}

impl Source for Late<'_> {
    fn var(&self, var: &Var) -> Cow<'_, str> {
        let target = || self.response.body().target().map(|target| target.key());
        match var {
            Var::Status => self.response.status().as_str().to_owned().into(),
            Var::Upstream => target().map_or("".into(), |(upstream, _)| (&**upstream).into()),
            Var::Target => target().map_or("".into(), |(_, address)| address.to_string().into()),
            Var::DurationMs => self.began.map_or("".into(), |began| {
                format!("{:.3}", began.elapsed().as_secs_f64() * 1000.0).into()
            }),
            // Of the request: put in before.
            _ => "".into(),
        }
    }
}

#[derive(Debug)]
pub(super) enum Compiled {
    Fixed(Edit),
    Set(HeaderName, Template),
    Add(HeaderName, Template),
}

impl Headers {
    pub(super) fn build(spec: &FiltersSpec) -> Option<Headers> {
        let layers = &spec.headers.layers;
        let request: Vec<_> = layers.iter().flat_map(|l| &l.request).collect();
        let response: Vec<_> = layers.iter().flat_map(|l| &l.response).collect();
        let compile = |edits: Vec<&EditSpec>| edits.into_iter().filter_map(Compiled::new).collect();
        let late = |edit: &&EditSpec| match edit {
            EditSpec::Set(_, template) | EditSpec::Add(_, template) => template.is_late(),
            EditSpec::Remove(_) => false,
        };
        (!request.is_empty() || !response.is_empty()).then(|| Headers {
            late: response.iter().any(late),
            request: compile(request),
            response: compile(response),
        })
    }

    /// Leaves in `passed` what is to be done. `goes_on`: the request was let through.
    pub(super) fn render(&self, source: &impl Source, goes_on: bool, passed: &mut Passed) {
        if goes_on {
            let edits = self.request.iter().filter_map(|edit| edit.render(source));
            passed.request.extend(edits.filter(is_possible));
        }
        passed.began = self.late.then(Instant::now);
        let variable = self.response.iter().filter(|edit| !edit.is_fixed());
        passed
            .response
            .extend(variable.map(|edit| edit.wait(source)));
    }

    /// Does what there is to do; `waiting` are those with variables, in their order.
    pub(super) fn back(
        &self,
        waiting: Vec<Waiting>,
        began: Option<Instant>,
        response: &mut Response<ResponseBody>,
    ) {
        let mut waiting = waiting.into_iter();
        for edit in &self.response {
            let edit = match edit {
                Compiled::Fixed(edit) => Some(edit.clone()),
                Compiled::Set(..) | Compiled::Add(..) => match waiting.next() {
                    Some(Waiting::Ready(edit)) => edit,
                    Some(Waiting::Late(edit)) => edit.render(&Late { response, began }),
                    None => None,
                },
            };
            if let Some(edit) = edit {
                edit.apply(response.headers_mut());
            }
        }
    }
}

impl Compiled {
    fn new(spec: &EditSpec) -> Option<Compiled> {
        Some(match spec {
            EditSpec::Remove(name) => Compiled::Fixed(Edit::Remove(name.clone())),
            EditSpec::Set(name, template) => match template.literal() {
                Some(text) => Compiled::Fixed(set(name, text.to_owned())),
                None => Compiled::Set(name.clone(), template.clone()),
            },
            EditSpec::Add(name, template) => match template.literal() {
                Some(text) => Compiled::Fixed(add(name, text.to_owned())?),
                None => Compiled::Add(name.clone(), template.clone()),
            },
        })
    }

    fn is_fixed(&self) -> bool {
        matches!(self, Compiled::Fixed(_))
    }

    /// As far as the request goes.
    fn wait(&self, source: &impl Source) -> Waiting {
        match self {
            Compiled::Set(name, template) if template.is_late() => {
                Waiting::Late(Compiled::Set(name.clone(), template.resolved(source)))
            }
            Compiled::Add(name, template) if template.is_late() => {
                Waiting::Late(Compiled::Add(name.clone(), template.resolved(source)))
            }
            edit => Waiting::Ready(edit.render(source)),
        }
    }

    fn render(&self, source: &impl Source) -> Option<Edit> {
        match self {
            Compiled::Fixed(edit) => Some(edit.clone()),
            Compiled::Set(name, template) => Some(set(name, template.render(source))),
            Compiled::Add(name, template) => add(name, template.render(source)),
        }
    }
}

/// A value that came out empty says that there is none.
fn set(name: &HeaderName, text: String) -> Edit {
    match field_value(text).filter(|value| !value.is_empty()) {
        Some(value) => Edit::Set(name.clone(), value),
        None => Edit::Remove(name.clone()),
    }
}

fn add(name: &HeaderName, text: String) -> Option<Edit> {
    let value = field_value(text).filter(|value| !value.is_empty())?;
    Some(Edit::Add(name.clone(), value))
}

/// A request has one valid host, whatever came out of a variable: else the one it came with stays.
fn is_possible(edit: &Edit) -> bool {
    match edit {
        Edit::Remove(name) => *name != HOST,
        Edit::Set(name, value) => *name != HOST || Host::parse(value.clone()).is_ok(),
        Edit::Add(name, _) => *name != HOST,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::http::{HeadersSetting, HeadersSpec};

    struct All(String);
    impl Source for All {
        fn var(&self, _: &Var) -> Cow<'_, str> {
            self.0.as_str().into()
        }
    }

    fn filter(request: Vec<EditSpec>, response: Vec<EditSpec>) -> Headers {
        let mut headers = HeadersSetting::default();
        headers
            .layers
            .push(Arc::new(HeadersSpec { request, response }));
        let spec = FiltersSpec {
            headers,
            ..FiltersSpec::default()
        };
        Headers::build(&spec).unwrap()
    }

    fn done(headers: &Headers, value: &str, before: &[(&'static str, &str)]) -> Vec<String> {
        let mut passed = Passed::default();
        headers.render(&All(value.into()), true, &mut passed);
        let mut map = HeaderMap::new();
        for (name, value) in before {
            map.append(*name, value.parse().unwrap());
        }
        passed
            .request
            .into_iter()
            .for_each(|edit| edit.apply(&mut map));
        let show = |(name, value): (_, &HeaderValue)| {
            format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
        };
        map.iter().map(show).collect()
    }

    fn t(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    #[test]
    fn changes_in_their_order() {
        let name = HeaderName::from_static;
        let headers = filter(
            vec![
                EditSpec::Remove(name("x-gone")),
                EditSpec::Set(name("x-a"), t("1")),
                EditSpec::Add(name("x-a"), t("{host}")),
                EditSpec::Set(name("x-empty"), t("{host}")),
                EditSpec::Set(name("host"), t("{host}")),
            ],
            vec![],
        );
        let before = [
            ("x-gone", "1"),
            ("x-a", "0"),
            ("x-a", "00"),
            ("x-empty", "1"),
            ("host", "h"),
        ];
        assert_eq!(
            done(&headers, "v", &before),
            ["host: v", "x-a: 1", "x-a: v", "x-empty: v"]
        );
        assert_eq!(done(&headers, "", &before), ["host: h", "x-a: 1"]);
        // Not a host: the one that came stays.
        let all = done(&headers, "a b", &before);
        assert!(all.contains(&"host: h".to_owned()), "{all:?}");
    }

    proptest! {
        #[test]
        fn no_variable_begins_another_field(value in "(\\PC|[\r\n\0\t:]){0,40}") {
            let name = HeaderName::from_static;
            let headers = filter(
                vec![EditSpec::Set(name("x-a"), t("a{host}")), EditSpec::Add(name("x-b"), t("b{host}"))],
                vec![],
            );
            let mut passed = Passed::default();
            headers.render(&All(value), true, &mut passed);
            prop_assert_eq!(passed.request.len(), 2);
            for edit in passed.request {
                let (Edit::Set(_, value) | Edit::Add(_, value)) = edit else {
                    return Err(TestCaseError::fail("a removal"));
                };
                prop_assert!(!value.as_bytes().iter().any(u8::is_ascii_control));
            }
        }
    }
}
