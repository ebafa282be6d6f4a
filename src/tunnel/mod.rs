//! Services behind NAT, published by a public machine: both sides, in one binary.
//!
//! An agent ([`agent`]) dials the public side over TLS 1.3, both prove that they know a secret ([`auth`]), and then the
//! roles turn: the agent serves HTTP/2 on the connection that it made, and the public side asks ([`session`]). Each stream
//! is one connection to a service; services that ask for it get connections of their own instead ([`ticket`]). [`Hub`] is the table of who is there; it outlives generations, and is where a target
//! `tunnel:AGENT/SERVICE` is dialled.

pub mod agent;
mod allowance;
pub mod auth;
mod carried;
pub mod carrier;
pub mod datagram;
mod dial;
pub mod flow;
pub mod greeting;
mod hub;
mod local;
mod offer;
pub mod session;
mod ticket;
pub mod wire;

pub use hub::{AgentView, Ask, Hub, Refusal, Tunnel};
