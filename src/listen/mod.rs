//! How bytes arrive: accept loops and what is spoken on a connection.
pub mod accept;
mod chunks;
pub mod entry;
pub mod forward;
pub mod framing;
pub mod http;
pub mod io;
pub mod l4;
mod names;
mod proxy_protocol;
mod resets;
pub mod streams;
pub mod timers;
pub mod tls;
pub mod tunnel;
pub mod udp;
mod udp_session;
