//! Calls of the admin API. Every answer is held against the contract before the test sees it.

use std::io;
use std::net::SocketAddr;

use serde_json::Value;

use super::process::Gate;
use super::raw::{Conn, Response};
use super::{contract, until};

/// One call, as it will be sent.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    method: String,
    target: String,
    host: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Call {
    pub(crate) fn new(method: &str, target: &str) -> Call {
        Call {
            method: method.to_owned(),
            target: target.to_owned(),
            host: None,
            headers: Vec::new(),
            body: None,
        }
    }

    pub(crate) fn get(target: &str) -> Call {
        Call::new("GET", target)
    }

    pub(crate) fn post(target: &str) -> Call {
        Call::new("POST", target)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Call {
        if name.eq_ignore_ascii_case("host") {
            self.host = Some(value.to_owned());
        } else {
            self.headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Call {
        self.body = Some(body.into());
        self.header("content-type", content_type)
    }

    pub(crate) fn toml(self, body: &str) -> Call {
        self.body("application/toml", body)
    }

    pub(crate) fn json(self, body: &Value) -> Call {
        self.body("application/json", body.to_string())
    }

    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// What goes over the wire.
    pub(crate) fn bytes(&self, to: SocketAddr, keep: bool) -> Vec<u8> {
        let Call { method, target, .. } = self;
        let host = self.host.clone().unwrap_or_else(|| to.to_string());
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n");
        if !keep {
            head.push_str("connection: close\r\n");
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.body.is_some() || method == "POST" {
            head.push_str(&format!(
                "content-length: {}\r\n",
                self.body.as_ref().map_or(0, Vec::len)
            ));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    pub(crate) fn try_send(&self, to: SocketAddr) -> io::Result<Response> {
        let mut conn = Conn::open(to)?;
        conn.send(self.bytes(to, false))?;
        conn.response_to(&self.method)
    }

    pub(crate) fn send(&self, to: SocketAddr) -> Answer {
        let response = self
            .try_send(to)
            .unwrap_or_else(|e| panic!("{} {}: {e}", self.method, self.target));
        contract::check(
            &self.method,
            &self.target,
            response.status,
            response.header("content-type"),
            &response.body,
        );
        Answer(response)
    }
}

/// An admin answer that fits the contract.
#[derive(Debug, Clone)]
pub(crate) struct Answer(pub(crate) Response);

impl std::ops::Deref for Answer {
    type Target = Response;
    fn deref(&self) -> &Response {
        &self.0
    }
}

impl Answer {
    /// Asserts the status and returns the JSON body.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "the answer: {}", self.text());
        self.json()
    }

    /// Asserts problem+json with this status and slug, and returns it.
    pub(crate) fn problem(&self, status: u16, slug: &str) -> Value {
        let body = self.expect(status);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(body["status"], status, "{body}");
        let kind = body["type"].as_str().unwrap_or_default();
        assert!(
            kind.rsplit(['/', ':', '#']).next() == Some(slug),
            "type {kind:?}, wanted {slug:?}: {body}"
        );
        assert!(
            body["title"].as_str().is_some_and(|t| !t.is_empty()),
            "{body}"
        );
        body
    }

    /// The `pointer`s of a refusal.
    pub(crate) fn pointers(&self) -> Vec<String> {
        let body = self.json();
        let errors = body["errors"]
            .as_array()
            .unwrap_or_else(|| panic!("no errors in {body}"));
        errors
            .iter()
            .map(|e| e["pointer"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The events of an NDJSON answer.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("application/x-ndjson"));
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Gate {
    pub(crate) fn call(&self, call: Call) -> Answer {
        call.send(self.base.admin)
    }

    /// Posts a document of this process's tables and `rest`.
    pub(crate) fn reload(&self, rest: &str) -> Answer {
        self.call(Call::post("/reload").toml(&self.document(rest)))
    }

    /// The same, and it must commit. Returns the answer.
    pub(crate) fn reload_ok(&self, rest: &str) -> Value {
        let answer = self.reload(rest).expect(200);
        assert_eq!(answer["outcome"], "committed", "{answer}");
        answer
    }

    /// The same, and waits until nothing of the older generations is left.
    pub(crate) fn reload_drained(&self, rest: &str) -> Value {
        let answer = self
            .call(Call::post("/reload?wait=drained").toml(&self.document(rest)))
            .expect(200);
        assert_eq!(answer["outcome"], "committed", "{answer}");
        answer
    }

    pub(crate) fn now(&self) -> Answer {
        let answer = self.call(Call::get("/now"));
        assert_eq!(answer.status, 200);
        answer
    }

    pub(crate) fn etag(&self) -> String {
        self.now().header("etag").expect("an ETag").to_owned()
    }

    pub(crate) fn status(&self) -> Value {
        self.call(Call::get("/status")).expect(200)
    }

    /// Waits until `/status` shows what is wanted.
    pub(crate) fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        until(what, || {
            last = self.status();
            wanted(&last).then(|| last.clone())
        })
    }

    /// Waits until only the serving generation is left and nothing retires.
    pub(crate) fn wait_settled(&self) -> Value {
        self.wait_status("older generations to be gone", |s| {
            s["generations"].as_array().is_some_and(|g| g.len() == 1)
                && s["listeners"]
                    .as_array()
                    .is_some_and(|l| l.iter().all(|l| l["state"] == "serving"))
        })
    }
}
