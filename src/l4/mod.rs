//! Layer 4: streams and datagrams passed on as they come.

pub(crate) mod pace;
pub mod relay;
pub mod tcp;
