//! The tunnels of `status`: who comes here, and who of here goes elsewhere.

use std::fmt::Write;

use super::table;
use crate::supervisor::{AgentSummary, TunnelSummary};

pub(super) fn draw(text: &mut String, tunnels: &[TunnelSummary], agents: &[AgentSummary]) {
    let rows = tunnels.iter().map(|one| {
        vec![
            one.name.clone(),
            format!("{} of {}", one.connected, one.agents),
            one.sessions.to_string(),
            one.services.to_string(),
            one.flows.to_string(),
        ]
    });
    let head = ["TUNNEL", "AGENTS", "SESSIONS", "SERVICES", "FLOWS"];
    table(text, &head, rows.collect());
    let rows = agents.iter().map(|one| {
        vec![
            one.agent.clone(),
            one.server.clone(),
            format!("{} of {}", one.connected, one.sessions),
            one.flows.to_string(),
        ]
    });
    let head = ["AGENT", "SERVER", "SESSIONS", "FLOWS"];
    table(text, &head, rows.collect());
    for agent in agents {
        if let Some(why) = &agent.why {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "agent {} is not connected: {why}", agent.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_drawn_with_what_is_wrong() {
        let tunnel = TunnelSummary {
            name: "edge".into(),
            agents: 3,
            connected: 1,
            sessions: 2,
            services: 4,
            flows: 5,
        };
        let agent = AgentSummary {
            agent: "home".into(),
            server: "edge.example:7000".into(),
            sessions: 2,
            connected: 0,
            flows: 0,
            why: Some("nobody answers".into()),
        };
        let mut text = String::new();
        draw(&mut text, &[tunnel], &[agent]);
        let wanted = "\nTUNNEL  AGENTS  SESSIONS  SERVICES  FLOWS\n\
                      edge    1 of 3  2         4         5\n\
                      \nAGENT  SERVER             SESSIONS  FLOWS\n\
                      home   edge.example:7000  0 of 2    0\n\
                      agent home is not connected: nobody answers\n";
        assert_eq!(text, wanted);
    }
}
