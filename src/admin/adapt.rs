//! A plan in words: the `text/plain` form of `/adapt`, and what the command line prints.

use std::fmt::Write;

use crate::config::Diagnostic;
use crate::supervisor::plan::{Change, Named, Plan};

/// Plan and warnings, a line each.
pub(crate) fn readable(plan: &Plan, warnings: &[Diagnostic]) -> String {
    let mut text = plan_text(plan);
    for warning in warnings {
        let place = match (warning.line, warning.column) {
            (Some(line), Some(column)) => format!("{line}:{column}: "),
            _ => String::new(),
        };
        let pointer = if warning.pointer.is_empty() {
            String::new()
        } else {
            format!(" ({})", warning.pointer)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "warning: {place}{}{pointer}", warning.message);
        if let Some(help) = &warning.help {
            let _ = writeln!(text, "  help: {help}");
        }
    }
    text
}

/// What a swap changes, a line each: `+` comes, `-` goes, `~` changes. What stays is only counted.
pub fn plan_text(plan: &Plan) -> String {
    let mut text = String::new();
    let mut kept = 0;
    for listener in &plan.listeners {
        let (sign, word) = match listener.change {
            Change::Keep => {
                kept += 1;
                continue;
            }
            Change::Update => ("~", "other routes"),
            Change::Refresh => ("~", "other connection settings"),
            Change::Open => ("+", "opens"),
            Change::Close => ("-", "closes"),
        };
        let servers = listener.servers.join(", ");
        let _ = writeln!(
            text,
            "{sign} listener {} {word} ({servers})",
            listener.address
        );
    }
    named(&mut text, "server", &plan.servers);
    named(&mut text, "upstream", &plan.upstreams);
    for section in &plan.sections {
        let _ = writeln!(text, "~ section {section}");
    }
    if text.is_empty() {
        text.push_str("nothing changes\n");
    }
    if kept > 0 {
        let _ = writeln!(
            text,
            "  {kept} listener{} untouched",
            if kept == 1 { "" } else { "s" }
        );
    }
    let targets = &plan.targets;
    if targets.kept + targets.new + targets.dropped > 0 {
        let (kept, new, dropped) = (targets.kept, targets.new, targets.dropped);
        let _ = writeln!(text, "  targets: {kept} kept, {new} new, {dropped} dropped");
    }
    text
}

fn named(text: &mut String, what: &str, names: &Named) {
    for (sign, names) in [
        ("+", &names.added),
        ("-", &names.removed),
        ("~", &names.changed),
    ] {
        for name in names {
            let _ = writeln!(text, "{sign} {what} {name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::plan::{Carried, ListenerPlan};

    #[test]
    fn a_plan_reads_like_a_diff() {
        let listener = |address: &str, change| ListenerPlan {
            address: address.into(),
            change,
            servers: vec!["web".into()],
        };
        let plan = Plan {
            listeners: vec![
                listener("127.0.0.1:80", Change::Keep),
                listener("127.0.0.1:81", Change::Open),
            ],
            servers: Named {
                changed: vec!["web".into()],
                ..Named::default()
            },
            upstreams: Named {
                removed: vec!["old".into()],
                ..Named::default()
            },
            targets: Carried {
                kept: 1,
                dropped: 1,
                new: 0,
            },
            sections: vec!["runtime".into()],
        };
        let expected = "+ listener 127.0.0.1:81 opens (web)\n~ server web\n- upstream old\n~ section runtime\n  \
                        1 listener untouched\n  targets: 1 kept, 0 new, 1 dropped\n";
        assert_eq!(plan_text(&plan), expected);
        assert_eq!(plan_text(&Plan::default()), "nothing changes\n");
    }
}
