//! The command line: `run` and the quick modes start the process, `check`, `trust`, `schema` and `hash-password`
//! need none, and `adapt`,
//! `reload`, `now`, `stop`, `status` and `sessions` talk to the admin API of one that runs. Exit codes are for scripts and stable; see
//! [`Exit`].

mod args;
mod client;
mod draw;
mod file;
mod local;
mod password;
mod quick;
mod remote;
mod secure;
mod trust;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Verb};

pub use file::find_config;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing was to be done.
    Done = 0,
    /// Anything that has no code of its own.
    Other = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The document is wrong (400, 422).
    Invalid = 3,
    /// Another configuration runs than the one named (412).
    IfMatch = 4,
    /// The document cannot be had here and now, or its turn did not come (409).
    NotPrepared = 5,
    /// Nobody answered.
    NoAnswer = 7,
}

impl Exit {
    /// What a status of the admin API means to a script.
    pub fn of_status(status: u16) -> Exit {
        match status {
            200..=299 | 304 => Exit::Done,
            400 | 422 => Exit::Invalid,
            412 => Exit::IfMatch,
            409 => Exit::NotPrepared,
            _ => Exit::Other,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Parses the command line, does what it says, and returns the exit code.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let exit = match args.verb {
        None => local::run(args.run),
        Some(Verb::Run(run)) => local::run(run),
        Some(Verb::Check(check)) => local::check(&check),
        Some(Verb::Trust(args)) => trust::trust(&args),
        Some(Verb::ReverseProxy(args)) => quick::reverse_proxy(&args),
        Some(Verb::FileServer(args)) => quick::file_server(&args),
        Some(Verb::Respond(args)) => quick::respond(&args),
        Some(Verb::Proxy(args)) => quick::proxy(&args),
        Some(Verb::Schema) => local::schema(),
        Some(Verb::HashPassword) => password::hash_password(),
        Some(Verb::Reload(reload)) => remote::block_on(remote::reload(reload)),
        Some(Verb::Adapt(adapt)) => remote::block_on(remote::adapt(adapt)),
        Some(Verb::Now(now)) => remote::block_on(remote::now(now)),
        Some(Verb::Stop(stop)) => remote::block_on(remote::stop(stop)),
        Some(Verb::Status(status)) => remote::block_on(remote::status(status)),
        Some(Verb::Sessions(sessions)) => remote::block_on(remote::sessions(sessions)),
    };
    exit.into()
}

/// Prints to standard output; a reader that has left (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // The only thing that goes wrong here is that nobody reads any more.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// An error in one line.
fn complain(message: &str) {
    eprintln!("evergate: {message}");
}
