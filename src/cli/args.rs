//! The command line as types; the doc comments are the manual that `--help` prints.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use super::client::Address;
use super::quick;
use super::secure::Tls;

/// A proxy whose whole configuration changes while it runs, without one failed request.
///
/// Without a command it runs: with the file of -c, else ./evergate.toml, the one in the user's configuration folder
/// ($XDG_CONFIG_HOME/evergate or ~/.config/evergate), /etc/evergate/evergate.toml, else a welcome page on
/// 127.0.0.1:8080.
///
/// Exit codes: 0 done or unchanged, 1 other, 2 usage, 3 invalid document, 4 another configuration runs (If-Match),
/// 5 not to be had here and now (an address in use) or busy, 7 no answer.
#[derive(Debug, Parser)]
#[command(
    name = "evergate",
    version,
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run in the foreground until stopped (the default)
    ///
    /// SIGHUP reads the file again; SIGTERM and SIGINT drain and exit 0, a second one exits at once.
    Run(Run),
    /// Pass requests on to a server, without a configuration file
    ReverseProxy(quick::ReverseProxy),
    /// Serve the files of a folder, without a configuration file
    FileServer(quick::FileServer),
    /// Answer every request with a text, without a configuration file
    Respond(quick::Respond),
    /// Be a forward proxy (HTTP and SOCKS), without a configuration file
    Proxy(quick::Proxy),
    /// Say everything that is wrong with a file; needs no running process
    ///
    /// Touches nothing outside the file: addresses in use and missing certificates are found by `adapt`, which asks the
    /// running process.
    Check(Check),
    /// Try a file against the running process: everything but the commit
    ///
    /// Prints the warnings and the plan: what would open, close and change.
    Adapt(Adapt),
    /// Change the whole configuration of the running process, in one step or not at all
    ///
    /// With -c the file is sent from here; without, the process reads its own file again. Prints the phases as they
    /// happen.
    Reload(Reload),
    /// Print the running configuration, normalized and without secrets
    Now(Now),
    /// Stop accepting, drain, exit
    Stop(Stop),
    /// Show what the running process is doing
    Status(Status),
    /// Show its long flows: websockets, sessions of TCP listeners and forward proxies; or end one
    Sessions(Sessions),
    /// Say how to trust the local CA behind `tls.self_signed`, for development
    ///
    /// It is kept in the state folder of the process that has this configuration.
    Trust(Trust),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print the hash of a password, for `basic_auth`
    ///
    /// The password is asked for at the terminal, else read from the first line of standard input.
    HashPassword,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Run {
    /// Configuration file: TOML, JSON or YAML by its ending
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print only warnings and errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Check {
    /// Configuration file; without it the one that `run` would find
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A warning refuses
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Trust {
    /// Configuration file; without it the one that `run` would find
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print its certificate and nothing else
    #[arg(long)]
    pub(crate) pem: bool,
    /// Do it here: add it to the CAs that this system trusts
    #[arg(long, conflicts_with = "pem")]
    pub(crate) install: bool,
}

/// Where the running process is.
#[derive(Debug, ClapArgs)]
pub(crate) struct Admin {
    /// Admin address: HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/PATH
    #[arg(
        long,
        env = "EVERGATE_ADMIN",
        default_value = "127.0.0.1:8837",
        value_name = "ADDR"
    )]
    pub(crate) admin: Address,
    /// Bearer token of `admin.token`; better given by the environment than on the command line
    #[arg(
        long,
        env = "EVERGATE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<String>,
    #[command(flatten)]
    pub(crate) tls: Tls,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Adapt {
    /// Configuration file; without it the process reads its own file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// A warning refuses
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print the whole answer as JSON: the normalized document, warnings, plan
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

/// When a change is done for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// Once the new generation serves (for a stop: once nothing is accepted)
    Committed,
    /// Once the old ones are gone
    Drained,
}

impl Until {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Until::Committed => "committed",
            Until::Drained => "drained",
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Reload {
    /// Configuration file to send; without it the process reads its own file again
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// When to return
    #[arg(long, value_enum, default_value = "committed")]
    pub(crate) wait: Until,
    /// How long the old generation may take to end, such as 10s; instead of runtime.drain_timeout
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<String>,
    /// How long to wait while other changes go first
    #[arg(long, value_name = "TIME")]
    pub(crate) turn: Option<String>,
    /// A warning refuses
    #[arg(long)]
    pub(crate) strict: bool,
    /// Only if this is what runs: the ETag of /now
    #[arg(long, value_name = "ETAG")]
    pub(crate) if_match: Option<String>,
    /// Retries with the same key are one change
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Print the events as JSON, one a line
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Toml,
    Json,
    Yaml,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Now {
    /// A part: SECTION[/NAME[/LIST/ITEM]], such as upstreams/api/targets/10.0.0.1:80 (a `/` in a name is %2F)
    pub(crate) part: Option<String>,
    /// Text format
    #[arg(long, value_enum, default_value = "toml")]
    pub(crate) format: Form,
    /// Fill in the keys that were left out
    #[arg(long)]
    pub(crate) defaults: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Stop {
    /// How long what was begun may take, such as 0s; instead of runtime.drain_timeout
    #[arg(long, value_name = "TIME")]
    pub(crate) drain_timeout: Option<String>,
    /// When to return
    #[arg(long, value_enum, default_value = "committed")]
    pub(crate) wait: Until,
    /// Print the events as JSON, one a line
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Status {
    /// Print the whole answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Sessions {
    #[command(subcommand)]
    pub(crate) verb: Option<SessionVerb>,
    /// Only those of one kind: websocket, socks5, socks4, socks_udp, tcp
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<String>,
    /// Only those of one client address
    #[arg(long, value_name = "IP")]
    pub(crate) client: Option<String>,
    /// Only those of one table, such as db of [tcp.db]
    #[arg(long, value_name = "NAME")]
    pub(crate) listener: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Only those with greater ids: the next page
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<u64>,
    /// Print the whole answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionVerb {
    /// End one, on both sides
    Close(CloseSession),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CloseSession {
    /// As the list has it
    pub(crate) id: u64,
    /// Print the whole answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_verb() {
        let args = Args::try_parse_from(["evergate", "-c", "a.toml"]).unwrap();
        assert!(args.verb.is_none());
        assert_eq!(args.run.config.unwrap().to_str(), Some("a.toml"));
        assert!(Args::try_parse_from(["evergate"]).unwrap().verb.is_none());
        assert!(matches!(
            Args::try_parse_from(["evergate", "run"]).unwrap().verb,
            Some(Verb::Run(_))
        ));
        assert!(Args::try_parse_from(["evergate", "-c", "a", "check"]).is_err());
    }

    #[test]
    fn a_verb_takes_its_options() {
        let args = [
            "evergate",
            "reload",
            "--wait",
            "drained",
            "--admin",
            "unix:/run/eg.sock",
            "--token",
            "t",
        ];
        let Some(Verb::Reload(reload)) = Args::try_parse_from(args).unwrap().verb else {
            panic!("reload")
        };
        assert_eq!(reload.wait, Until::Drained);
        assert_eq!(reload.admin.admin, Address::Unix("/run/eg.sock".into()));
        assert!(Args::try_parse_from(["evergate", "reload", "--wait", "never"]).is_err());
        assert!(Args::try_parse_from(["evergate", "now", "--admin", "https://x"]).is_err());
        assert!(Args::try_parse_from(["evergate", "now", "--cert", "a.pem"]).is_err());
    }
}
