//! What agents carry, by agent, on either side. Agents that came by a certificate are counted while they are there: the
//! others are named by the configuration, so that there are as many samples as it has agents.

use std::fmt;

use super::Writer;
use crate::supervisor::TunnelList;

pub(super) fn write(list: &TunnelList, to: &mut Writer<'_>) -> fmt::Result {
    let tunnels = list.tunnels.iter();
    let published = || {
        tunnels.clone().flat_map(|tunnel| {
            let agents = tunnel.agents.iter();
            agents.map(|one| ([("tunnel", &*tunnel.name), ("agent", &*one.agent)], one))
        })
    };
    to.gauges(
        "evergate_tunnel_sessions",
        "Sessions of an agent that comes here.",
        published().map(|(labels, a)| (labels, a.sessions.len() as u64)),
    )?;
    to.gauges(
        "evergate_tunnel_flows",
        "Open connections to the services of an agent.",
        published().map(|(labels, a)| (labels, a.flows)),
    )?;
    to.counters(
        "evergate_tunnel_flows_opened",
        "Connections to the services of an agent.",
        published().map(|(labels, a)| (labels, a.opened as f64)),
    )?;
    to.counters(
        "evergate_tunnel_sent_bytes",
        "Bytes to the services of an agent.",
        published().map(|(labels, a)| (labels, a.sent as f64)),
    )?;
    to.counters(
        "evergate_tunnel_received_bytes",
        "Bytes from the services of an agent.",
        published().map(|(labels, a)| (labels, a.received as f64)),
    )?;
    to.counters(
        "evergate_tunnel_dropped_datagrams",
        "Datagrams to the services of an agent for which there was no room, and those that its bandwidth made late, either way.",
        published().map(|(labels, a)| (labels, a.dropped as f64)),
    )?;
    let agents = || list.agents.iter().map(|a| ([("agent", &*a.agent)], a));
    to.gauges(
        "evergate_agent_sessions",
        "Sessions that an agent which runs here has with its server.",
        agents().map(|(labels, a)| {
            let connected = a.sessions.iter().filter(|s| s.session.is_some());
            (labels, connected.count() as u64)
        }),
    )?;
    to.gauges(
        "evergate_agent_flows",
        "Open connections to the services of an agent that runs here.",
        agents().map(|(labels, a)| (labels, a.sessions.iter().map(|s| s.flows).sum())),
    )
}
