//! `evergate trust`: what to do so that the systems of those who develop believe what `self_signed` presents. It only reads
//! the CA: the running process makes it, and holds the folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::Trust;
use super::file::{Text, find_config};
use super::{Exit, complain, draw, print};
use crate::app;
use crate::config::Format;
use crate::document::{Context, Document, Refused};
use crate::supervisor;
use crate::tls;

/// What the file is called among those of others.
const NAME: &str = "evergate-local-ca.crt";

pub(crate) fn trust(trust: &Trust) -> Exit {
    let document = match document(trust.config.as_deref()) {
        Ok(document) => document,
        Err(exit) => return exit,
    };
    let Some(folder) = supervisor::state_folder(&document) else {
        complain("this configuration has no state folder: set `runtime.state_dir`");
        return Exit::Other;
    };
    let path = tls::local_ca_path(&folder);
    let pem = match std::fs::read_to_string(&path) {
        Ok(pem) => pem,
        Err(error) => {
            complain(&format!("{}: {error}", path.display()));
            complain("the local CA is made when a server with `tls.self_signed` first runs");
            return Exit::Other;
        }
    };
    if trust.pem {
        print(&pem);
        return Exit::Done;
    }
    let recipe = Recipe::of(Path::new("/"));
    if !trust.install {
        print(&manual(&path, recipe.as_ref()));
        return Exit::Done;
    }
    match recipe {
        Some(recipe) => match recipe.follow(&path) {
            Ok(()) => {
                print(&format!("{} is trusted on this machine\n", path.display()));
                Exit::Done
            }
            Err(message) => {
                complain(&message);
                Exit::Other
            }
        },
        None => {
            complain(
                "how this system keeps the CAs it trusts is not known here; without --install there is more to read",
            );
            Exit::Other
        }
    }
}

/// The configuration whose process is meant: the file, or what runs when there is none.
fn document(config: Option<&Path>) -> Result<Document, Exit> {
    let found = find_config(config);
    let text = match &found {
        Some(path) => Text::read(path).map_err(|message| {
            complain(&message);
            Exit::Other
        })?,
        None => Text {
            name: "the built-in welcome page".to_owned(),
            bytes: app::WELCOME.as_bytes().to_vec(),
            format: Format::Toml,
        },
    };
    let base = found.as_deref().and_then(Path::parent);
    let base = base.filter(|base| !base.as_os_str().is_empty());
    let context = Context {
        base: base.unwrap_or(Path::new(".")).to_owned(),
        running: None,
    };
    let (errors, exit) = match Document::parse(&text.bytes, text.format, &context) {
        Ok(parsed) => return Ok(std::sync::Arc::unwrap_or_clone(parsed.document)),
        Err(Refused::Unavailable(errors)) => (errors, Exit::NotPrepared),
        Err(Refused::Syntax(errors) | Refused::Invalid { errors, .. }) => (errors, Exit::Invalid),
    };
    draw::findings(&text.name, &text.bytes, &errors, &[]);
    Err(exit)
}

/// How a system is told to trust a CA: a copy of its certificate among others, then a command.
#[derive(Debug, PartialEq, Eq)]
struct Recipe {
    folder: Option<PathBuf>,
    command: &'static str,
    /// Before the path of the certificate, if it was not copied.
    arguments: Vec<String>,
    /// Needs the rights of the administrator.
    privileged: bool,
}

impl Recipe {
    /// That of the system whose root folder it is.
    fn of(root: &Path) -> Option<Recipe> {
        if cfg!(target_os = "macos") {
            let arguments = ["add-trusted-cert", "-r", "trustRoot"].map(str::to_owned);
            return Some(Recipe {
                folder: None,
                command: "security",
                arguments: arguments.into(),
                privileged: false,
            });
        }
        if cfg!(windows) {
            let arguments = ["-addstore", "-user", "Root"].map(str::to_owned);
            return Some(Recipe {
                folder: None,
                command: "certutil",
                arguments: arguments.into(),
                privileged: false,
            });
        }
        // Debian and Alpine, Fedora and SUSE's newer ones, Arch.
        let known: [(&str, &str, &[&str]); 3] = [
            (
                "usr/local/share/ca-certificates",
                "update-ca-certificates",
                &[],
            ),
            ("etc/pki/ca-trust/source/anchors", "update-ca-trust", &[]),
            (
                "etc/ca-certificates/trust-source/anchors",
                "trust",
                &["extract-compat"],
            ),
        ];
        known.into_iter().find_map(|(folder, command, arguments)| {
            let folder = root.join(folder);
            folder.is_dir().then(|| Recipe {
                folder: Some(folder),
                command,
                arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
                privileged: true,
            })
        })
    }

    /// The lines for a shell.
    fn lines(&self, path: &Path) -> Vec<String> {
        let sudo = if self.privileged { "sudo " } else { "" };
        let arguments: String = self.arguments.iter().map(|a| format!(" {a}")).collect();
        match &self.folder {
            Some(folder) => vec![
                format!(
                    "{sudo}cp '{}' {}",
                    path.display(),
                    folder.join(NAME).display()
                ),
                format!("{sudo}{}{arguments}", self.command),
            ],
            None => vec![format!(
                "{sudo}{}{arguments} '{}'",
                self.command,
                path.display()
            )],
        }
    }

    fn follow(&self, path: &Path) -> Result<(), String> {
        let mut command = Command::new(self.command);
        command.args(&self.arguments);
        match &self.folder {
            Some(folder) => {
                let to = folder.join(NAME);
                let copied = std::fs::copy(path, &to);
                copied.map_err(|error| format!("{}: {error}; run it as root", to.display()))?;
            }
            None => _ = command.arg(path),
        }
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{} ended with {status}", self.command)),
            Err(error) => Err(format!("{}: {error}", self.command)),
        }
    }
}

fn manual(path: &Path, recipe: Option<&Recipe>) -> String {
    let shown = path.display();
    let mut out = format!(
        "The local CA that signs what `self_signed` presents:\n  {shown}\n\
         Whoever has its key ({}) can pretend to be any site to those who trust it:\n\
         trust it where you develop, nowhere else.\n\n",
        path.with_extension("key").display()
    );
    match recipe {
        Some(recipe) => {
            out.push_str("This system (or `evergate trust --install`):\n");
            for line in recipe.lines(path) {
                out.push_str(&format!("  {line}\n"));
            }
        }
        None => out.push_str("This system keeps its CAs in a way that is not known here.\n"),
    }
    out.push_str(&format!(
        "Firefox:      Settings, Privacy & Security, View Certificates, Authorities, Import\n\
         curl:         curl --cacert '{shown}' https://localhost:8443/\n\
         Node.js:      NODE_EXTRA_CA_CERTS='{shown}'\n\
         Python:       SSL_CERT_FILE='{shown}', requests: REQUESTS_CA_BUNDLE\n\
         elsewhere:    evergate trust --pem > evergate-local-ca.crt, and take it there\n"
    ));
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_recipe_is_that_of_the_system() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Recipe::of(root.path()), None);
        let anchors = root.path().join("etc/pki/ca-trust/source/anchors");
        std::fs::create_dir_all(&anchors).unwrap();
        let recipe = Recipe::of(root.path()).unwrap();
        let lines = recipe.lines(Path::new("/state/local-ca/ca.crt"));
        let to = anchors.join(NAME);
        let copy = format!("sudo cp '/state/local-ca/ca.crt' {}", to.display());
        assert_eq!(lines, [copy.as_str(), "sudo update-ca-trust"]);
    }

    #[cfg(unix)]
    #[test]
    fn following_it_copies_and_runs_and_says_what_went_wrong() {
        let root = tempfile::tempdir().unwrap();
        let cert = root.path().join("ca.crt");
        std::fs::write(&cert, "pem").unwrap();
        let mut recipe = Recipe {
            folder: Some(root.path().join("anchors")),
            command: "true",
            arguments: vec![],
            privileged: true,
        };
        assert!(recipe.follow(&cert).unwrap_err().contains("run it as root"));
        let anchors = root.path().join("anchors");
        std::fs::create_dir(&anchors).unwrap();
        recipe.follow(&cert).unwrap();
        assert_eq!(std::fs::read_to_string(anchors.join(NAME)).unwrap(), "pem");
        recipe.command = "false";
        assert!(recipe.follow(&cert).unwrap_err().contains("ended with"));
        let text = manual(&cert, Some(&recipe));
        assert!(
            text.contains("--cacert") && text.contains("sudo false"),
            "{text}"
        );
    }
}
