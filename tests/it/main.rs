//! Black-box tests: the real binary, real sockets, raw bytes. One file per subject; `kit` starts things and waits
//! for events. Names that begin with `release_` hold the heavy counts and its times; on a debug build they
//! test the behaviour with smaller counts and no clock.
//!
//! `EVERGATE_TEST_MODEL=per-core|shared` chooses the worker model of every configuration, `EVERGATE_ONE_SOCKET=1`
//! (read by the binary) the one-shared-socket fallback, `EVERGATE_TEST_FULL=1` the full counts on a debug build.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kit;

mod access_log;
mod admin;
mod admin_tls;
mod attempts;
mod auth;
mod balance;
mod bridge;
mod bridge_out;
mod certificates;
mod chain_of_three;
mod chains;
mod chains_websocket;
mod cli;
mod client_certs;
mod compress;
mod contract;
mod drain;
mod edits;
mod ends;
mod examples;
mod examples_more;
mod files;
mod filters;
mod flows;
mod forward;
mod gates;
mod hardening_framing;
mod hardening_h2;
mod hardening_origin;
mod hardening_resources;
mod hardening_slow;
mod headers;
mod health;
mod held_back;
mod limits;
mod metrics;
mod proxy;
mod proxy_out;
mod proxy_protocol;
mod quick;
mod refused;
mod reload;
mod routes;
mod said_once;
mod samples;
mod scale;
mod sessions;
mod sni;
mod sni_shared;
mod sockets;
mod socks;
mod socks_refused;
mod socks_udp_via;
mod split;
mod swap_load;
mod target_limits;
mod target_state;
mod tcp;
mod tls;
mod tour;
mod tunnels;
mod udp;
mod udp_via;
mod upstream_h2;
mod upstream_tls;
mod websocket;
