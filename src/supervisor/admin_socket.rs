//! The admin address: bound like every other (reserved in prepare, listened to at commit), served by `admin`.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::admin::AdminSpec;
use crate::config::scalar::ListenAddr;
use crate::net;
use crate::tls;

/// Calls that may wait to be accepted.
#[cfg(unix)]
const UNIX_BACKLOG: i32 = 128;

/// The admin address as the running document wants it. The supervisor binds it; `admin` serves it.
#[derive(Debug)]
pub struct AdminBinding {
    pub generation: u64,
    pub spec: AdminSpec,
    /// Listening, non-blocking. The supervisor keeps the original: take a `try_clone`. The same `Arc` as in the
    /// binding before when the address did not change: then go on accepting from it without a break.
    pub listener: Arc<AdminListener>,
    /// What `listener` presents; `None`: it is cleartext.
    pub tls: Option<Arc<tls::Server>>,
    /// Of `monitor`; the same rules hold for it, but it has no TLS.
    pub monitor: Option<Arc<AdminListener>>,
}

#[derive(Debug)]
pub enum AdminListener {
    Tcp(std::net::TcpListener),
    #[cfg(unix)]
    Unix(net::unix::Listener),
}

impl AdminListener {
    /// As bound: a port 0 has become a number.
    pub fn address(&self) -> String {
        match self {
            AdminListener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "?".into(), |a: SocketAddr| a.to_string()),
            #[cfg(unix)]
            AdminListener::Unix(listener) => format!("unix:{}", listener.path().display()),
        }
    }
}

/// The admin address and that of `monitor`, as far as they are new.
#[derive(Default)]
pub(super) struct AdminSockets<T> {
    pub(super) api: Option<T>,
    pub(super) monitor: Option<T>,
}

impl AdminSockets<AdminReserved> {
    pub(super) fn listen(self) -> Result<AdminSockets<AdminListener>, String> {
        let listen =
            |reserved: Option<AdminReserved>| reserved.map(AdminReserved::listen).transpose();
        Ok(AdminSockets {
            api: listen(self.api)?,
            monitor: listen(self.monitor)?,
        })
    }
}

/// The admin socket in the supervisor's hand.
pub(super) struct AdminSocket {
    pub(super) address: ListenAddr,
    pub(super) listener: Arc<AdminListener>,
}

/// Reserved for a generation that may never be.
pub(super) enum AdminReserved {
    Tcp(net::Reserved),
    #[cfg(unix)]
    Unix(net::unix::Reserved),
}

impl AdminReserved {
    pub(super) fn reserve(address: &ListenAddr) -> Result<AdminReserved, (String, Option<String>)> {
        match address {
            ListenAddr::Tcp(address) => net::reserve_single(*address)
                .map(AdminReserved::Tcp)
                .map_err(|error| (error.to_string(), error.help())),
            #[cfg(unix)]
            ListenAddr::Unix(path) => net::unix::reserve(path, net::unix::PRIVATE)
                .map(AdminReserved::Unix)
                .map_err(|error| (format!("{}: {error}", path.display()), None)),
            #[cfg(not(unix))]
            ListenAddr::Unix(_) => Err(("unix sockets do not exist on this platform".into(), None)),
        }
    }

    pub(super) fn listen(self) -> Result<AdminListener, String> {
        match self {
            AdminReserved::Tcp(reserved) => {
                let listener = reserved.listen().map_err(|e| e.to_string())?.pop();
                listener
                    .map(AdminListener::Tcp)
                    .ok_or_else(|| "no socket was reserved".into())
            }
            #[cfg(unix)]
            AdminReserved::Unix(reserved) => reserved
                .listen(UNIX_BACKLOG)
                .map(AdminListener::Unix)
                .map_err(|e| e.to_string()),
        }
    }
}
