//! The bound addresses of the process. Whatever serves on them, only this closes one.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::scalar::ListenAddr;
use crate::listen::accept::Binding;
use crate::net;
use crate::snapshot::BindingKey;

/// One bound address: its sockets are closed when this is dropped, and only then.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) key: BindingKey,
    pub(super) binding: Arc<Binding>,
    pub(super) sockets: Vec<net::Opened>,
}

/// Addresses that are being let go.
pub(super) type Retiring = Arc<Mutex<Vec<(net::Transport, ListenAddr)>>>;

/// The socket table: the only thing that closes a listener.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) map: BTreeMap<BindingKey, Arc<Bound>>,
    pub(super) next_id: u32,
    /// Addresses that are being let go; not bound again before.
    pub(super) retiring: Retiring,
}

impl Table {
    pub(super) fn bound(&self) -> Vec<Arc<Bound>> {
        self.map.values().cloned().collect()
    }

    pub(super) fn owned(&self, transport: net::Transport) -> net::Owned {
        let mut owned = net::Owned::of(transport);
        let all = self.map.values();
        for bound in all.filter(|bound| bound.key.transport == transport) {
            let Some(address) = bound.binding.address.tcp() else {
                continue;
            };
            let sockets = bound.sockets.iter();
            match transport {
                net::Transport::Stream => owned.add(address, sockets.filter_map(net::Opened::tcp)),
                net::Transport::Datagram => {
                    owned.add(address, sockets.filter_map(net::Opened::udp));
                }
            }
        }
        owned
    }
}
