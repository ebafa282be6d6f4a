//! `{host}`, `{header.x}` …: templates, parsed once when a document is checked, rendered per request through a
//! [`Source`] that the request's context implements. `{{` and `}}` are literal braces.

use std::borrow::Cow;

use super::check::shorten;
use super::findings::did_you_mean;
use super::scalar::Wrong;

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
    TlsVersion,
    Sni,
    User,
    ClientCert(ClientCertPart),
    Header(::http::HeaderName),
    Cookie(String),
    QueryKey(String),
}

/// A part of the certificate that a client has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertPart {
    /// RFC 4514: `CN=alice,O=Example`.
    Subject,
    /// SHA-256 of the certificate in lower-case hexadecimal.
    Fingerprint,
    /// `DNS:a.test,email:a@a.test`.
    San,
}

/// What renders a variable.
pub trait Source {
    /// The variable's text; empty where the request has none.
    fn var(&self, var: &Var) -> Cow<'_, str>;
}

/// The variables without a name of their own.
const VARIABLES: [(&str, Var); 19] = [
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
    ("user", Var::User),
    (
        "client_cert.subject",
        Var::ClientCert(ClientCertPart::Subject),
    ),
    (
        "client_cert.fingerprint",
        Var::ClientCert(ClientCertPart::Fingerprint),
    ),
    ("client_cert.san", Var::ClientCert(ClientCertPart::San)),
];

/// Variables of features that are not built.
const LATER: [&str; 6] = [
    "request_id",
    "upstream",
    "target",
    "status",
    "duration_ms",
    "bytes_sent",
];

impl Template {
    /// Parses a text with `{variables}`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Template, Vec<Wrong>> {
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
                    match variable(&after[..end]) {
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

fn variable(text: &str) -> Result<Var, Wrong> {
    if let Some((_, var)) = VARIABLES.iter().find(|(name, _)| *name == text) {
        return Ok(var.clone());
    }
    if LATER.contains(&text) {
        return Err(Wrong::new(format!(
            "`{{{}}}` is not supported yet",
            shorten(text)
        )));
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
        let wrong = Template::parse("{hots} } {request_id} {header.} {").unwrap_err();
        let messages: Vec<_> = wrong.iter().map(|w| w.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "there is no variable `{hots}`",
                "a `}` without a `{` before it",
                "`{request_id}` is not supported yet",
                "`{header.}` needs a name",
                "a `{` that is not closed"
            ]
        );
        assert_eq!(wrong[0].help.as_deref(), Some("did you mean `host`?"));
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
