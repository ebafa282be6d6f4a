//! One binary for all targets: `FUZZ_TARGET` names the one that runs.
#![no_main]

use std::sync::OnceLock;

use evergate::fuzzing;
use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("document", fuzzing::document),
    ("template", fuzzing::template),
    ("path", fuzzing::path),
    ("host", fuzzing::host),
    ("matcher", fuzzing::matcher),
    ("framing", fuzzing::framing),
    ("websocket", fuzzing::websocket),
    ("socks", fuzzing::socks),
    ("carrier", fuzzing::carrier::codec),
    ("connect_reply", fuzzing::via::connect_reply),
    ("socks_reply", fuzzing::via::socks_reply),
    ("answer", fuzzing::answers::answer),
    ("hello", fuzzing::hello),
    ("place", fuzzing::files::place),
    ("range", fuzzing::files::range),
    ("conditional", fuzzing::files::conditional),
    ("negotiate", fuzzing::files::negotiate),
];

fn chosen() -> Target {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(name, _)| *name == wanted) {
        Some((_, target)) => *target,
        None => {
            let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("FUZZ_TARGET is one of {}", names.join(", "));
            std::process::exit(2);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(chosen)(data);
});
