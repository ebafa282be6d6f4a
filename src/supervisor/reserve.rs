//! Of a swap: the addresses that are new are reserved, bound but not listening, so that all that cannot be had is found before
//! anybody notices.

use std::time::Duration;

use tokio::time::Instant;

use super::Rejection;
use super::actor::Supervisor;
use super::admin_socket::{AdminReserved, AdminSocket, AdminSockets};
use super::plan::{Change, Step};
use crate::config::scalar::ListenAddr;
use crate::document::{Document, Parsed};
use crate::net;
use crate::snapshot::BindingKey;

/// How often it is looked whether an address that retires is free.
const RETIRE_LOOK: Duration = Duration::from_millis(5);

impl Supervisor {
    /// Reserves every new address, the admin's too; gathers all that cannot be had.
    pub(super) async fn reserve(
        &self,
        parsed: &Parsed,
        steps: &[Step],
        deadline: Instant,
    ) -> Result<
        (
            Vec<(BindingKey, net::Reservation)>,
            AdminSockets<AdminReserved>,
        ),
        Rejection,
    > {
        let count = if net::balances() {
            self.shards(&parsed.document)
        } else {
            1
        };
        let mut streams = self.table.owned(net::Transport::Stream);
        let mut datagrams = self.table.owned(net::Transport::Datagram);
        let mut opened = Vec::new();
        let mut errors = Vec::new();
        for step in steps.iter().filter(|step| step.change == Change::Open) {
            let pointer = place_of(&parsed.document, &step.key);
            let address = &step.key.address;
            self.wait_until_retired(&step.key, deadline).await;
            let owned = match step.key.transport {
                net::Transport::Stream => &mut streams,
                net::Transport::Datagram => &mut datagrams,
            };
            let reserved = match step.key.transport {
                net::Transport::Stream => net::Reservation::new(address, count, owned),
                net::Transport::Datagram => net::Reservation::of_datagrams(address, count, owned),
            };
            match reserved {
                Ok(reserved) => {
                    if let ListenAddr::Tcp(address) = address {
                        owned.reserved(*address);
                    }
                    opened.push((step.key.clone(), reserved));
                }
                Err(error) => errors.push(parsed.locate(&pointer, error.message, error.help)),
            }
        }
        let spec = &parsed.document.admin;
        let mut take = |wanted: &ListenAddr, has: &Option<AdminSocket>, pointer| {
            if has.as_ref().is_some_and(|socket| socket.address == *wanted) {
                return None;
            }
            let reserved = AdminReserved::reserve(wanted);
            reserved
                .map_err(|(message, help)| errors.push(parsed.locate(pointer, message, help)))
                .ok()
        };
        let admin = AdminSockets {
            api: take(&spec.listen, &self.admin, "/admin/listen"),
            monitor: spec
                .monitor
                .as_ref()
                .and_then(|wanted| take(wanted, &self.monitor, "/admin/monitor")),
        };
        if errors.is_empty() {
            Ok((opened, admin))
        } else {
            Err(Rejection::with(409, "not-prepared", errors))
        }
    }

    fn shards(&self, document: &Document) -> usize {
        match (&self.crew, document.runtime.model) {
            (Some(crew), _) => crew.workers.len(),
            (None, crate::config::runtime::Model::PerCore) => document.runtime.workers,
            (None, crate::config::runtime::Model::Shared) => 1,
        }
    }

    /// An address that is being let go is free in a moment; after the deadline binding it tells.
    async fn wait_until_retired(&self, key: &BindingKey, deadline: Instant) {
        let same = |transport: net::Transport, ours: &ListenAddr| {
            let alike = match (ours.tcp(), key.address.tcp()) {
                (Some(ours), Some(address)) => ours.port() == address.port(),
                _ => *ours == key.address,
            };
            alike && transport == key.transport
        };
        let busy = || {
            let retiring = self.table.retiring.lock();
            retiring
                .iter()
                .any(|(transport, ours)| same(*transport, ours))
        };
        // Sessions of UDP would hold it until their deadline.
        let retired = self.draining.iter().flat_map(|draining| draining.retired());
        for bound in retired.filter(|b| same(b.key.transport, &b.binding.address)) {
            bound.binding.hurry.cancel();
        }
        while busy() && Instant::now() < deadline {
            tokio::time::sleep(RETIRE_LOOK).await;
        }
    }
}

/// Where the document names an address: its first server's `listen`.
fn place_of(document: &Document, key: &BindingKey) -> String {
    if key.transport == net::Transport::Datagram {
        return place_of_alone(document, key);
    }
    let named = document.http.values().find_map(|server| {
        let owned = key
            .owner
            .as_ref()
            .is_none_or(|(name, _)| *name == server.name);
        let index = match &key.owner {
            Some((_, index)) => Some(*index),
            None => server
                .listen
                .iter()
                .position(|address| *address == key.address),
        };
        index
            .filter(|_| owned)
            .map(|index| document.listen_pointer(&server.name, index))
    });
    named.unwrap_or_else(|| place_of_alone(document, key))
}

/// The same for what has its addresses alone.
fn place_of_alone(document: &Document, key: &BindingKey) -> String {
    let forward = document.forward.values();
    let forward = forward.map(|f| ("forward", &f.name, &f.listen));
    let tcp = document.tcp.values().map(|t| ("tcp", &t.name, &t.listen));
    let udp = document.udp.values().map(|u| ("udp", &u.name, &u.listen));
    let tunnels = document.tunnels.values();
    let tunnels = tunnels.map(|t| ("tunnels", &t.name, &t.listen));
    let mut all = forward.chain(tcp).chain(udp).chain(tunnels);
    let found = all.find(|(section, name, listen)| match &key.owner {
        _ if (*section == "udp") != (key.transport == net::Transport::Datagram) => false,
        Some((owner, _)) => **owner == format!("[{section}.{name}]"),
        None => listen.contains(&key.address),
    });
    found.map_or(String::new(), |(section, name, _)| {
        format!("/{section}/{name}/listen")
    })
}
