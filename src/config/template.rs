//! `{host}`, `{header.x}` …: templates, parsed once when a document is checked, rendered per request through a
//! [`Source`] that the request's context implements. `{{` and `}}` are literal braces.

use std::borrow::Cow;

use super::check::shorten;
use super::findings::did_you_mean;
use super::scalar::Wrong;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    Text(String),
    Var(Var),
}

/// A template variable (config.md, "Template variables"). Those of features that are not built are refused by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    TlsVersion,
    Sni,
    ClientCert(ClientCertPart),
    RequestId,
    /// Whom authentication found.
    User,
    /// Of the response, as are those below: see [`Var::since`].
    Upstream,
    Target,
    Status,
    /// Milliseconds since the request began, with three decimals.
    DurationMs,
    BytesSent,
    /// Of a websocket or a session; nothing for other requests.
    BytesReceived,
    /// How a session ended; nothing for requests.
    Ended,
    Header(::http::HeaderName),
    Cookie(String),
    QueryKey(String),
}

/// A part of the certificate that a client has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientCertPart {
    /// RFC 4514: `CN=alice,O=Example`.
    Subject,
    /// SHA-256 of the certificate in lower-case hexadecimal.
    Fingerprint,
    /// `DNS:a.test,email:a@a.test`.
    San,
}

/// Where a template stands, which is what may be known there. Each side knows what those before it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// It is rendered before there is a response.
    Request,
    /// It is rendered with the head of the response: a field of it.
    Response,
    /// It is rendered when the response has ended.
    Log,
}

impl Var {
    /// The first side that knows it.
    pub fn since(&self) -> Side {
        match self {
            Var::Upstream | Var::Target | Var::Status | Var::DurationMs => Side::Response,
            Var::BytesSent | Var::BytesReceived | Var::Ended => Side::Log,
            _ => Side::Request,
        }
    }
}

/// What renders a variable.
pub trait Source {
    /// The variable's text; empty where the request has none.
    fn var(&self, var: &Var) -> Cow<'_, str>;
}

/// The variables without a name of their own.
const VARIABLES: [(&str, Var); 27] = [
    ("client_ip", Var::ClientIp),
    ("client_port", Var::ClientPort),
    ("scheme", Var::Scheme),
    ("host", Var::Host),
    ("port", Var::Port),
    ("method", Var::Method),
    ("path", Var::Path),
    ("query", Var::Query),
    ("uri", Var::Uri),
    ("server", Var::Server),
    ("route", Var::Route),
    ("generation", Var::Generation),
    ("time", Var::Time),
    ("tls_version", Var::TlsVersion),
    ("sni", Var::Sni),
    (
        "client_cert.subject",
        Var::ClientCert(ClientCertPart::Subject),
    ),
    (
        "client_cert.fingerprint",
        Var::ClientCert(ClientCertPart::Fingerprint),
    ),
    ("client_cert.san", Var::ClientCert(ClientCertPart::San)),
    ("request_id", Var::RequestId),
    ("user", Var::User),
    ("upstream", Var::Upstream),
    ("target", Var::Target),
    ("status", Var::Status),
    ("duration_ms", Var::DurationMs),
    ("bytes_sent", Var::BytesSent),
    ("bytes_received", Var::BytesReceived),
    ("ended", Var::Ended),
];

impl Template {
    /// Parses a text with `{variables}` that is rendered before there is a response.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Template, Vec<Wrong>> {
        Template::parse_for(text, Side::Request)
    }

    /// The same for one that is rendered on `side`.
    ///
    /// # Errors
    /// Everything that is wrong with it; variables that are not known there too.
    pub fn parse_for(text: &str, side: Side) -> Result<Template, Vec<Wrong>> {
        let mut parts = Vec::new();
        let mut wrong = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            let after = &rest[at + 1..];
            if let Some(tail) = after.strip_prefix(brace) {
                literal.push_str(brace);
                rest = tail;
                continue;
            }
            rest = after;
            if brace == "}" {
                wrong.push(
                    Wrong::new("a `}` without a `{` before it")
                        .help("write `}}` for the character itself"),
                );
                continue;
            }
            // A variable never spans lines; a brace that is not closed soon was meant as one.
            match after
                .find(['{', '}', '\n'])
                .filter(|end| after.as_bytes().get(*end) == Some(&b'}'))
            {
                Some(end) => {
                    rest = &after[end + 1..];
                    match variable(&after[..end], side) {
                        Ok(var) => {
                            if !literal.is_empty() {
                                parts.push(Part::Text(std::mem::take(&mut literal)));
                            }
                            parts.push(Part::Var(var));
                        }
                        Err(error) => wrong.push(error),
                    }
                }
                None => wrong.push(
                    Wrong::new("a `{` that is not closed")
                        .help("write `{{` for the character itself"),
                ),
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if wrong.is_empty() {
            Ok(Template { parts })
        } else {
            Err(wrong)
        }
    }

    /// The whole text, if no variable is in it.
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(t)] => Some(t),
            _ => None,
        }
    }

    /// The same with what a request knows put in; what only its response will know stays.
    pub fn resolved(&self, source: &impl Source) -> Template {
        let resolve = |part: &Part| match part {
            Part::Var(var) if var.since() == Side::Request => {
                Part::Text(source.var(var).into_owned())
            }
            other => other.clone(),
        };
        Template {
            parts: self.parts.iter().map(resolve).collect(),
        }
    }

    /// True if a request does not know all of it.
    pub fn is_late(&self) -> bool {
        let late = |part: &Part| matches!(part, Part::Var(var) if var.since() > Side::Request);
        self.parts.iter().any(late)
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

fn variable(text: &str, side: Side) -> Result<Var, Wrong> {
    if let Some((_, var)) = VARIABLES.iter().find(|(name, _)| *name == text) {
        let wrong = Wrong::new(format!("`{{{text}}}` is not known here yet"));
        return match var.since() {
            since if since <= side => Ok(var.clone()),
            Side::Log => {
                Err(wrong.help("only the access log can tell it: the response has ended then"))
            }
            _ => Err(wrong.help(
                "it belongs to the response: header fields of it may name it, and the access log",
            )),
        };
    }
    let unnamed = |kind: &str| {
        Wrong::new(format!("`{{{kind}.}}` needs a name")).help(format!("such as `{{{kind}.x}}`"))
    };
    match text.split_once('.') {
        Some(("header", name)) if !name.is_empty() => ::http::HeaderName::try_from(name)
            .map(Var::Header)
            .map_err(|_| Wrong::new(format!("`{}` is not the name of a header", shorten(name)))),
        Some(("cookie", name)) if !name.is_empty() => Ok(Var::Cookie(name.to_owned())),
        Some(("query", name)) if !name.is_empty() => Ok(Var::QueryKey(name.to_owned())),
        Some((kind @ ("header" | "cookie" | "query"), _)) => Err(unnamed(kind)),
        _ => {
            let wrong = Wrong::new(format!("there is no variable `{{{}}}`", shorten(text)));
            let help = did_you_mean(text, VARIABLES.iter().map(|(name, _)| *name));
            Err(wrong
                .help(help.unwrap_or_else(|| "write `{{` for the character itself".to_owned())))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn braces_and_variables() {
        let template = Template::parse("a{{b}} {host}{header.X-A}{cookie.c}{query.q}").unwrap();
        let expected = [
            Part::Text("a{b} ".into()),
            Part::Var(Var::Host),
            Part::Var(Var::Header(::http::HeaderName::from_static("x-a"))),
            Part::Var(Var::Cookie("c".into())),
            Part::Var(Var::QueryKey("q".into())),
        ];
        assert_eq!(template.parts, expected);
        assert_eq!(Template::parse("").unwrap().literal(), Some(""));
    }

    #[test]
    fn all_mistakes_of_a_template_are_told() {
        let wrong = Template::parse("{hots} } {status} {header.} {").unwrap_err();
        let messages: Vec<_> = wrong.iter().map(|w| w.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "there is no variable `{hots}`",
                "a `}` without a `{` before it",
                "`{status}` is not known here yet",
                "`{header.}` needs a name",
                "a `{` that is not closed"
            ]
        );
        assert_eq!(wrong[0].help.as_deref(), Some("did you mean `host`?"));
    }

    #[test]
    fn each_side_knows_what_is_known_by_then() {
        let fits = |text: &str, side| Template::parse_for(text, side).is_ok();
        for (text, first) in [
            ("{request_id} {user} {host}", Side::Request),
            ("{status} {upstream} {target} {duration_ms}", Side::Response),
            ("{bytes_sent}", Side::Log),
            ("{bytes_received}", Side::Log),
            ("{ended}", Side::Log),
        ] {
            for side in [Side::Request, Side::Response, Side::Log] {
                assert_eq!(fits(text, side), side >= first, "{text} {side:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_text_with_doubled_braces_is_literal(text in "\\PC{0,40}") {
            let doubled = text.replace('{', "{{").replace('}', "}}");
            let template = Template::parse(&doubled).unwrap();
            prop_assert_eq!(template.literal(), Some(text.as_str()));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[a-z{}.\n]{0,40}") {
            let _ = Template::parse(&text);
        }
    }
}
