//! `[admin]`: the control surface.
use super::scalar::{ListenAddr, Secret};

/// Checked `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSpec {
    pub listen: ListenAddr,
    /// Bearer token that every call but `/livez` must carry.
    pub token: Option<Secret>,
    /// `Host` values accepted, lower case, without port; empty stands for the loopback names.
    pub allowed_hosts: Vec<String>,
}
