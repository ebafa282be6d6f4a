//! `balance`: a word, or `{ hash = "TEMPLATE" }`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::super::check::Checker;
use super::super::decode::{Decode, Loc, section, words};
use super::super::findings::Findings;
use super::super::template::Template;
use super::super::tree::{Node, Value};

/// How a target is chosen, as it is written.
#[derive(Debug, Clone)]
pub enum BalanceRaw {
    Word(Word),
    Hash(HashRaw),
}

/// The policies that need nothing but their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    RoundRobin,
    LeastRequests,
    Random,
    P2cEwma,
    IpHash,
}

words!(Word {
    "round_robin" => Word::RoundRobin,
    "least_requests" => Word::LeastRequests,
    "random" => Word::Random,
    "p2c_ewma" => Word::P2cEwma,
    "ip_hash" => Word::IpHash,
});

section! {
    /// Consistent hash with bounded load: requests with the same text go to the same target.
    pub struct HashRaw {
        /// What is hashed, a template: `{header.x-user}`.
        hash: String,
    }
    later = [];
}

/// How a target is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastRequests,
    /// By weight and chance.
    Random,
    /// Of two random ones the one whose latency times its requests in flight is less.
    P2cEwma,
    /// By the client's address.
    IpHash,
    /// By a text of the request; no target gets more than a quarter over its share of what is in flight.
    Hash(Template),
}

impl BalanceRaw {
    /// `None`: wrong, which has been recorded.
    pub fn spec(&self, check: &mut Checker<'_>) -> Option<Balance> {
        let hash = match self {
            BalanceRaw::Word(word) => {
                return Some(match word {
                    Word::RoundRobin => Balance::RoundRobin,
                    Word::LeastRequests => Balance::LeastRequests,
                    Word::Random => Balance::Random,
                    Word::P2cEwma => Balance::P2cEwma,
                    Word::IpHash => Balance::IpHash,
                });
            }
            BalanceRaw::Hash(raw) => raw.hash.as_ref()?,
        };
        match Template::parse(hash) {
            Ok(template) if template.literal().is_some() => {
                let message = "a text without variables sends every request to one target";
                let finding = check.findings.error(hash.at, message);
                finding.help("such as `{header.x-user}` or `{path}`");
                None
            }
            Ok(template) => Some(Balance::Hash(template)),
            Err(all) => {
                for wrong in all {
                    let finding = check.findings.error(hash.at, wrong.message);
                    finding.help_if(wrong.help);
                }
                None
            }
        }
    }
}

impl Decode for BalanceRaw {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        if !matches!(node.value, Value::Table(_)) {
            return Word::decode(node, findings).map(BalanceRaw::Word);
        }
        let raw = HashRaw::decode(node, findings)?;
        if raw.hash.is_none() {
            if raw.spoiled.is_empty() {
                let finding = findings.error(node.at, "a table here needs `hash`");
                finding.help("such as `{ hash = \"{header.x-user}\" }`");
            }
            return None;
        }
        Some(BalanceRaw::Hash(raw))
    }
}

impl Serialize for BalanceRaw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            BalanceRaw::Word(word) => word.serialize(serializer),
            BalanceRaw::Hash(raw) => raw.serialize(serializer),
        }
    }
}

impl JsonSchema for BalanceRaw {
    fn schema_name() -> Cow<'static, str> {
        "Balance".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (word, hash) = (
            Word::json_schema(generator),
            generator.subschema_for::<HashRaw>(),
        );
        json_schema!({ "anyOf": [word, hash] })
    }
}

/// The policy of an upstream that says none, or whose own was wrong.
pub(super) fn balance(raw: Option<&Loc<BalanceRaw>>, check: &mut Checker<'_>) -> Balance {
    raw.and_then(|raw| raw.spec(check))
        .unwrap_or(Balance::RoundRobin)
}
