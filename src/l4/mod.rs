//! Layer 4: streams and datagrams passed on as they come.

mod pace;
pub mod relay;
pub mod tcp;
