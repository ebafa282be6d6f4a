//! Evergate: a proxy whose whole configuration changes while it runs, without one failed request.
//!
//! # The map
//!
//! `config` reads a document in TOML, JSON or YAML and turns it into checked *specs*. `document` is the root of
//! that language. `snapshot` compiles a document into runtime objects, taking *leases* on state that outlives it
//! from `registry`. `supervisor` is the only writer of what runs: it plans, prepares, commits and drains
//! generations, one swap at a time. A `worker` is a runtime with its own sockets and a mailbox through which it
//! adopts a generation. `admin` is a loopback JSON API that only talks to the supervisor's handle.
//!
//! # The layer rule (`scripts/layers` checks it: a module uses only lower layers and its own)
//!
//! | layer | modules |
//! | --- | --- |
//! | 8 edge | `cli`, `app`, `fuzzing` |
//! | 7 admin | `admin` |
//! | 6 supervisor | `supervisor` |
//! | 5 assembly | `snapshot` |
//! | 4 entry | `worker`, `listen` |
//! | 3 meaning | `http`, `l4`, `forward`, `tunnel` |
//! | 2 reach | `upstream`, `tls`, `registry`, `password` |
//! | 1 base | `net`, `generation`, `session`, `metrics`, `memory`, `log` |
//! | 0 grammar | `config`, `document` |
//!
//! # Words
//!
//! *Document*: one whole configuration. *Generation*: a document that runs, or ran. *Swap*: the passage from one
//! generation to the next. *Listener*: a bound address. *Entry*: what a generation does behind one listener.
//! *Upstream*: a named set of *targets*. *Drain*: letting what an old generation has begun come to its end.

// The documentation is for those who build this: CI makes it with private items.
#![allow(rustdoc::private_intra_doc_links)]

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod document;
pub mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod generation;
pub mod http;
pub mod l4;
pub mod listen;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod password;
pub mod registry;
pub mod session;
pub mod snapshot;
pub mod supervisor;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;
