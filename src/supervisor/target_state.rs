//! What an operator says of a target, put into the one that serves. It is no swap: the next request sees it, and the next
//! generation finds it where it is.

use super::Rejection;
use super::handle::Handle;
use super::status::TargetStatus;
use super::view::target_status;
use crate::upstream::TargetState;

/// One who takes a target out, or back in.
#[derive(Debug, Clone)]
pub struct TargetRequest {
    pub upstream: String,
    /// Its address, as `/status` shows it.
    pub target: String,
    pub state: TargetState,
    /// Answer when nothing is in flight there.
    pub wait_idle: bool,
    /// ETag that must be the running one, else 412.
    pub if_match: Option<String>,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetRefused {
    pub status: u16,
    /// Stable slug of the problem type.
    pub problem: &'static str,
    pub detail: String,
}

impl From<Rejection> for TargetRefused {
    fn from(rejection: Rejection) -> TargetRefused {
        TargetRefused {
            status: rejection.status,
            problem: rejection.problem,
            detail: rejection.detail,
        }
    }
}

impl Handle {
    /// Says what becomes of a target from the next request on. It is done at the first poll; what follows is waiting.
    ///
    /// # Errors
    /// There is no such target, nothing serves, or `if_match` does not hold. Nothing was done then.
    pub async fn set_target(&self, request: TargetRequest) -> Result<TargetStatus, TargetRefused> {
        let inner = &self.inner;
        inner.check_if_match(request.if_match.as_deref())?;
        let view = inner.view.load_full();
        let (_, snapshot) = view.serving().ok_or_else(|| TargetRefused {
            status: 503,
            problem: "not-ready",
            detail: "nothing runs: the process starts or stops".to_owned(),
        })?;
        // Only the target is held while it is waited for, no generation.
        drop(view);
        let missing = |detail: String| TargetRefused {
            status: 404,
            problem: "no-such-target",
            detail,
        };
        let upstream = snapshot.upstreams.get(request.upstream.as_str());
        let upstream = upstream
            .ok_or_else(|| missing(format!("there is no upstream `{}`", request.upstream)))?;
        let found = upstream
            .targets()
            .find(|(address, _, _)| address.to_string() == request.target);
        let (weight, target) = found
            .map(|(_, weight, target)| (weight, target.clone()))
            .ok_or_else(|| {
                let (name, target) = (&request.upstream, &request.target);
                missing(format!("the upstream `{name}` has no target `{target}`"))
            })?;
        drop(snapshot);
        target.set_wish(request.state);
        if request.wait_idle {
            target.idle_at_last().await;
        }
        Ok(target_status(weight, &target))
    }
}
