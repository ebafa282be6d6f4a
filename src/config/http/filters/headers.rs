//! `headers`: fields that are set, added and taken away.

use std::sync::Arc;

use ::http::HeaderName;
use ::http::header::HOST;

use super::super::super::check::{Checker, shorten};
use super::super::super::decode::{List, Loc, Map, Switch, section};
use super::super::super::scalar::Wrong;
use super::super::super::template::{Side, Template};
use super::super::super::tree::At;
use super::super::action::{FRAMING, host_value, is_header_value, template_for};

section! {
    /// Change the fields of requests and responses. What servers, routes and the sets they use say adds up: the server's
    /// first, the route's last.
    pub struct HeadersRaw {
        /// Fields of a request as it goes to an upstream. `host` may be set: it counts more than `host_header`.
        request: EditsRaw,
        /// Fields of every response, also of those made here.
        response: EditsRaw,
    }
    later = [];
}

section! {
    /// Changes of fields: first they are taken away, then set, then added. In values `{variables}` are those of the request
    /// as it came, and in a response also `{status}`, `{upstream}`, `{target}` and `{duration_ms}`; a value that comes out
    /// empty takes the field away.
    pub struct EditsRaw {
        /// Fields with the one value they get, whatever they had.
        set: Map<String>,
        /// Lines that are put beside those that are there.
        add: Map<List<String>>,
        /// Fields that are taken away.
        remove: List<String>,
    }
    later = [];
}

/// Bytes of one value: few peers take more in one field, and a set of filters stands for many routes.
const MAX_VALUE: usize = 8 * 1024;

/// Checked `headers` of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeadersSpec {
    /// In the order in which they are done.
    pub request: Vec<EditSpec>,
    pub response: Vec<EditSpec>,
}

/// One change of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditSpec {
    Remove(HeaderName),
    Set(HeaderName, Template),
    Add(HeaderName, Template),
}

/// What `headers` say in all: unlike other filters they add up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeadersSetting {
    /// `false` was said: nothing that lies below counts.
    off: bool,
    /// Outermost first.
    pub layers: Vec<Arc<HeadersSpec>>,
}

impl HeadersSetting {
    pub(super) fn read(
        raw: Option<&Loc<Switch<HeadersRaw>>>,
        check: &mut Checker<'_>,
    ) -> HeadersSetting {
        match raw.map(|raw| &raw.value) {
            None => HeadersSetting::default(),
            Some(Switch::Off) => HeadersSetting {
                off: true,
                layers: Vec::new(),
            },
            Some(Switch::On(headers)) => HeadersSetting {
                off: false,
                layers: vec![Arc::new(HeadersSpec {
                    request: edits(headers.request.as_ref(), Side::Request, check),
                    response: edits(headers.response.as_ref(), Side::Response, check),
                })],
            },
        }
    }

    /// These after those `below`.
    pub(super) fn over(&self, below: &HeadersSetting) -> HeadersSetting {
        if self.off {
            return self.clone();
        }
        HeadersSetting {
            off: below.off,
            layers: below.layers.iter().chain(&self.layers).cloned().collect(),
        }
    }
}

fn edits(raw: Option<&Loc<EditsRaw>>, side: Side, check: &mut Checker<'_>) -> Vec<EditSpec> {
    let Some(raw) = raw else { return Vec::new() };
    let mut out = Vec::new();
    for text in raw.remove.iter().flat_map(|list| list.iter()) {
        let name = field_name(text, text.at, side, check);
        if side == Side::Request && name == Some(HOST) {
            let finding = check.findings.error(text.at, "a request needs its `host`");
            finding.help("`set` may give it another one");
            continue;
        }
        out.extend(name.map(EditSpec::Remove));
    }
    for (name, text) in raw.set.iter().flat_map(|map| map.iter()) {
        let name = field_name(name, text.at, side, check);
        let value = value(text, side, check);
        if let (Side::Request, Some(HOST), Some(value)) = (side, &name, &value)
            && let Some(fixed) = value.literal()
        {
            check.take(text.at, host_value(fixed));
        }
        let same = |edit: &EditSpec| matches!(edit, EditSpec::Set(other, _) if Some(other) == name.as_ref());
        if out.iter().any(same) {
            let finding = check
                .findings
                .key_error(text.at, "the same field is set twice");
            finding.help("names of fields have no case");
        }
        let edit = |(name, value)| EditSpec::Set(name, value);
        out.extend(name.zip(value).map(edit));
    }
    for (name, lines) in raw.add.iter().flat_map(|map| map.iter()) {
        let name = field_name(name, lines.at, side, check);
        if side == Side::Request && name == Some(HOST) {
            let finding = check
                .findings
                .key_error(lines.at, "a request has one `host`");
            finding.help("`set` gives it another one");
            continue;
        }
        for text in lines.iter() {
            let value = value(text, side, check);
            let edit = |(name, value)| EditSpec::Add(name, value);
            out.extend(name.clone().zip(value).map(edit));
        }
    }
    out
}

fn value(text: &Loc<String>, side: Side, check: &mut Checker<'_>) -> Option<Template> {
    if text.len() > MAX_VALUE {
        let message = format!("a value of a header has at most {MAX_VALUE} bytes");
        check.findings.error(text.at, message);
        return None;
    }
    template_for(text.at, text, side, check).filter(|t| is_header_value(t, text.at, check))
}

fn field_name(text: &str, at: At, side: Side, check: &mut Checker<'_>) -> Option<HeaderName> {
    let name = HeaderName::try_from(text)
        .map_err(|_| Wrong::new(format!("`{}` is not the name of a header", shorten(text))));
    let name = name.and_then(|name| {
        let framing = FRAMING.contains(&name.as_str()) || name == "proxy-connection";
        // `100 Continue` is between the client and us, and us and the origin.
        if framing || (side == Side::Request && name == "expect") {
            return Err(
                Wrong::new(format!("`{name}` follows from the body and the connection"))
                    .help("leave it out"),
            );
        }
        Ok(name)
    });
    match name {
        Ok(name) => Some(name),
        Err(wrong) => {
            let finding = check.findings.key_error(at, wrong.message);
            finding.help_if(wrong.help);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_add_up_and_off_ends_what_is_below() {
        let layer = |name: &'static str| HeadersSetting {
            off: false,
            layers: vec![Arc::new(HeadersSpec {
                request: vec![EditSpec::Remove(HeaderName::from_static(name))],
                response: vec![],
            })],
        };
        let names = |setting: &HeadersSetting| -> Vec<String> {
            let edits = setting.layers.iter().flat_map(|l| &l.request);
            edits.map(|e| format!("{e:?}")).collect()
        };
        let both = layer("route").over(&layer("server"));
        assert_eq!(names(&both), ["Remove(\"server\")", "Remove(\"route\")"]);
        let off = HeadersSetting {
            off: true,
            layers: vec![],
        };
        assert_eq!(names(&off.over(&both)), [""; 0]);
        // What is nearer than a `false` counts again, and nothing that is farther off.
        let again = layer("route").over(&off);
        assert_eq!(names(&again.over(&layer("server"))), ["Remove(\"route\")"]);
    }
}
