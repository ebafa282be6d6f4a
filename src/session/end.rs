//! How a long flow ended, in the words of its line in the access log.

/// How one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides had done so.
    Closed,
    /// Nothing passed for the idle time.
    Idle,
    /// A swap, its target or an operator ended it.
    Cut,
    /// A side broke off.
    Broken,
    /// It never began, for which HTTP would have this status.
    Nothing(u16),
}

impl End {
    /// As `{ended}` has it.
    pub fn word(self) -> &'static str {
        match self {
            End::Closed => "closed",
            End::Idle => "idle",
            End::Cut => "cut",
            End::Broken => "broken",
            End::Nothing(401 | 403 | 407) => "refused",
            End::Nothing(_) => "failed",
        }
    }

    /// For those who read statuses: what HTTP would call it.
    pub fn status(self) -> u16 {
        match self {
            End::Closed => 200,
            End::Idle => 408,
            End::Cut => 503,
            End::Broken => 502,
            End::Nothing(status) => status,
        }
    }
}
