//! `reverse-proxy`, `file-server`, `respond`, `proxy`: one common job each, without a file. Each is a document made from the
//! command line, which runs like any other: the admin API is on, and `--print-config` shows it to start a file from.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::{Map, Value, json};

use super::{Exit, complain, local, password, print};
use crate::config::{Format, render};

/// What every quick mode takes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Common {
    /// Where the admin API listens: 127.0.0.1:PORT or unix:/PATH; 127.0.0.1:8837 if not given
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Print the configuration this stands for, and exit
    #[arg(long)]
    print_config: bool,
    /// Print only warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReverseProxy {
    /// Where to listen: HOST:PORT, :PORT (all addresses) or unix:/PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    from: String,
    /// Where requests go: HOST:PORT, http://HOST:PORT/BASE or unix:/PATH; several share the requests
    #[arg(long, value_name = "TARGET", required = true)]
    to: Vec<String>,
    /// `preserve` (as the client sent it), `upstream` (the target's), or a text
    #[arg(long, value_name = "HOST")]
    host_header: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct FileServer {
    /// The folder
    #[arg(value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Where to listen: HOST:PORT, :PORT (all addresses) or unix:/PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: String,
    /// List the contents of folders without an index
    #[arg(long)]
    browse: bool,
    /// Answer every path that is no file with /index.html, as a single-page application wants it
    #[arg(long)]
    spa: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Respond {
    /// The body, in which {variables} such as {host}, {path} and {client_ip} are replaced; {{ is a brace
    #[arg(default_value = "")]
    body: String,
    /// Where to listen: HOST:PORT, :PORT (all addresses) or unix:/PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: String,
    /// 200 to 599
    #[arg(long, default_value_t = 200)]
    status: u16,
    /// A header field of the answer; may be given several times
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Proxy {
    /// Where to listen: HOST:PORT, :PORT (all addresses, which needs --user or --client) or unix:/PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    listen: String,
    /// Who may use it; the password is asked for at the terminal, else read from the first line of standard input
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A range of addresses from which clients may connect; may be given several times
    #[arg(long = "client", value_name = "CIDR")]
    clients: Vec<String>,
    /// Somewhere to go that is denied by default, such as 127.0.0.1:3000; may be given several times
    #[arg(long = "allow", value_name = "DESTINATION")]
    allow: Vec<String>,
    #[command(flatten)]
    common: Common,
}

pub(crate) fn reverse_proxy(args: &ReverseProxy) -> Exit {
    let mut proxy = Map::new();
    let mut document = Map::new();
    match args.to.as_slice() {
        [one] => drop(proxy.insert("upstream".into(), json!(one))),
        several => {
            proxy.insert("upstream".into(), json!("targets"));
            document.insert(
                "upstreams".into(),
                json!({ "targets": { "targets": several } }),
            );
        }
    }
    if let Some(host) = &args.host_header {
        proxy.insert("host_header".into(), json!(host));
    }
    let server = json!({ "listen": args.from, "proxy": proxy });
    run(&args.common, "http", "reverse-proxy", server, document)
}

pub(crate) fn file_server(args: &FileServer) -> Exit {
    // Written out in full: the document may be saved elsewhere.
    let root = match std::path::absolute(&args.root) {
        Ok(root) => root,
        Err(error) => {
            complain(&format!("{}: {error}", args.root.display()));
            return Exit::Usage;
        }
    };
    let Some(root) = root.to_str() else {
        complain(&format!(
            "{}: a configuration is UTF-8, and this name is not",
            args.root.display()
        ));
        return Exit::Usage;
    };
    let mut files = Map::from_iter([("root".to_owned(), json!(root))]);
    if args.browse {
        files.insert("browse".into(), json!(true));
    }
    if args.spa {
        files.insert("try".into(), json!(["{path}", "/index.html"]));
    }
    let server = json!({ "listen": args.listen, "files": files });
    run(&args.common, "http", "file-server", server, Map::new())
}

pub(crate) fn respond(args: &Respond) -> Exit {
    let mut respond = Map::from_iter([("body".to_owned(), json!(args.body))]);
    if args.status != 200 {
        respond.insert("status".into(), json!(args.status));
    }
    let mut headers = Map::new();
    for field in &args.headers {
        let Some((name, value)) = field.split_once(':') else {
            complain(&format!("`{field}` is no header field: NAME: VALUE"));
            return Exit::Usage;
        };
        headers.insert(name.trim().to_ascii_lowercase(), json!(value.trim()));
    }
    if !headers.is_empty() {
        respond.insert("headers".into(), Value::Object(headers));
    }
    let server = json!({ "listen": args.listen, "respond": respond });
    run(&args.common, "http", "respond", server, Map::new())
}

pub(crate) fn proxy(args: &Proxy) -> Exit {
    let mut proxy = Map::from_iter([("listen".to_owned(), json!(args.listen))]);
    if let Some(name) = &args.user {
        let hash = match password::hashed() {
            Ok(hash) => hash,
            Err(message) => {
                complain(&message);
                return Exit::Other;
            }
        };
        // SOCKS4 has no passwords.
        proxy.insert("protocols".into(), json!(["http", "socks5"]));
        proxy.insert("users".into(), json!({ name: hash }));
    }
    if !args.clients.is_empty() {
        proxy.insert("clients".into(), json!(args.clients));
    }
    if !args.allow.is_empty() {
        proxy.insert("destinations".into(), json!({ "allow": args.allow }));
    }
    run(
        &args.common,
        "forward",
        "proxy",
        Value::Object(proxy),
        Map::new(),
    )
}

/// Prints or runs the document whose one listener is `server`, of this kind.
fn run(
    common: &Common,
    kind: &str,
    name: &'static str,
    server: Value,
    mut document: Map<String, Value>,
) -> Exit {
    document.insert("version".into(), json!(1));
    if let Some(admin) = &common.admin {
        document.insert("admin".into(), json!({ "listen": admin }));
    }
    document.insert(kind.into(), json!({ name: server }));
    let text = render::render(&Value::Object(document), Format::Toml);
    if common.print_config {
        print(&text);
        return Exit::Done;
    }
    local::run_text(Path::new(name), text, common.quiet)
}
