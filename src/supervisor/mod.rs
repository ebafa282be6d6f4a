//! The only writer of "what runs": an actor that takes one swap at a time through parse, plan, prepare, commit and
//! drain. Boot is a swap from nothing, stop a swap to nothing, so both use the path that is tested most.
//!
//! It promises: what can fail comes before what cannot; a swap that fails leaves no trace; what one asks is done or
//! refused whatever becomes of the one who asked; reads never wait for a swap.

mod actor;
mod admin_socket;
mod certificates;
mod drain;
pub mod event;
mod figures;
mod files;
mod handle;
mod log;
pub mod plan;
mod prepare;
mod reading;
mod request;
mod reserve;
mod sessions;
mod state_dir;
mod status;
mod swap;
mod table;
mod target_state;
mod targets;
mod tunnels;
mod view;
mod watch;

pub use crate::upstream::TargetState;
pub use actor::{Options, start};
pub use admin_socket::{AdminBinding, AdminListener};
pub use certificates::{CertificateList, CertificateStatus, RefreshRefused, RefreshRequest};
pub use figures::{Figures, ListenerFigures, RouteFigures, TargetFigures};
pub use handle::{Handle, Running};
pub use log::EventReader;
pub use request::{Source, SubmitError, SwapRecord, SwapRequest};
pub use sessions::{LiveSession, SessionList, SessionTotals};
pub use state_dir::folder as state_folder;
pub use status::{
    AgentSummary, CheckStatus, GenerationStatus, ListenerStatus, Status, TargetStatus,
    TunnelSummary, UpstreamStatus,
};
pub use target_state::{TargetRefused, TargetRequest};
pub use tunnels::TunnelList;

use crate::config::Diagnostic;

/// Why a swap did not commit: what the plain answer says.
#[derive(Debug)]
struct Rejection {
    status: u16,
    /// Stable slug of the problem type.
    problem: &'static str,
    errors: Vec<Diagnostic>,
    detail: String,
}

impl Rejection {
    fn new(status: u16, problem: &'static str, detail: impl Into<String>) -> Rejection {
        Rejection {
            status,
            problem,
            errors: Vec::new(),
            detail: detail.into(),
        }
    }

    fn with(status: u16, problem: &'static str, errors: Vec<Diagnostic>) -> Rejection {
        let detail = match errors.as_slice() {
            [one] => one.message.clone(),
            many => format!("{} errors", many.len()),
        };
        Rejection {
            status,
            problem,
            errors,
            detail,
        }
    }

    fn stopping() -> Rejection {
        Rejection::new(503, "stopping", "the process is stopping")
    }
}
