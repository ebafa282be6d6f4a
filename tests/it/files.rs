//! Static files: what is served, in which form, and above all what is not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::kit::{Call, Conn, Gate, Response, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A folder `www` to serve, and beside it what must never be.
fn site() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, contents: &[u8]| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, contents).unwrap();
    };
    write("secret.txt", b"SECRET");
    write("www-evil/secret.txt", b"SECRET");
    write("www/index.html", b"<h1>home</h1>");
    write("www/digits.txt", b"0123456789");
    write("www/empty.txt", b"");
    write("www/sub/index.html", b"sub");
    write("www/bare/a<b>.txt", b"a");
    write("www/bare/dir/x", b"x");
    write("www/bare/.hidden", b"HIDDEN");
    write("www/.env", b"HIDDEN");
    write("www/.git/config", b"HIDDEN");
    write("www/.well-known/token", b"public");
    write("www/evil.test/index.html", b"evil");
    write("www/a b/é.txt", b"");
    write("www/app.js", b"plain plain plain");
    write("www/app.js.br", b"BR");
    write("www/app.js.gz", b"GZ");
    write("www/photo.png", b"png");
    symlink("../secret.txt", dir.path().join("www/link.txt")).unwrap();
    symlink("..", dir.path().join("www/up")).unwrap();
    symlink("digits.txt", dir.path().join("www/inside.txt")).unwrap();
    symlink(
        dir.path().join("secret.txt"),
        dir.path().join("www/abs.txt"),
    )
    .unwrap();
    dir
}

fn config(to: SocketAddr, root: &Path, more: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nfiles = {{ root = \"{}\"{more} }}\n",
        root.display()
    )
}

struct Site {
    to: SocketAddr,
    gate: Gate,
    dir: TempDir,
}

impl Site {
    fn start(more: &str) -> Site {
        let (dir, to) = (site(), local(free_port()));
        let gate = Gate::start(&config(to, &dir.path().join("www"), more));
        Site { to, gate, dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("www").join(name)
    }

    fn ask(&self, method: &str, target: &str, more: &str) -> Response {
        let mut conn = Conn::open(self.to).unwrap();
        conn.send(format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\n{more}connection: close\r\n\r\n"
        ))
        .unwrap();
        conn.response_to(method)
            .unwrap_or_else(|e| panic!("{method} {target} {more}: {e}"))
    }

    fn get(&self, target: &str, more: &str) -> Response {
        self.ask("GET", target, more)
    }
}

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    response.header(name).unwrap_or_default()
}

#[test]
fn files_and_folders_with_their_types() {
    let site = Site::start("");
    for (path, text, kind) in [
        ("/", "<h1>home</h1>", "text/html; charset=utf-8"),
        ("/index.html", "<h1>home</h1>", "text/html; charset=utf-8"),
        ("/digits.txt", "0123456789", "text/plain; charset=utf-8"),
        ("/digits.txt?x=1", "0123456789", "text/plain; charset=utf-8"),
        ("/%64igits.txt", "0123456789", "text/plain; charset=utf-8"),
        ("//digits.txt", "0123456789", "text/plain; charset=utf-8"),
        (
            "/sub/../digits.txt",
            "0123456789",
            "text/plain; charset=utf-8",
        ),
        ("/sub/", "sub", "text/html; charset=utf-8"),
        ("/empty.txt", "", "text/plain; charset=utf-8"),
        ("/photo.png", "png", "image/png"),
        ("/a%20b/%C3%A9.txt", "", "text/plain; charset=utf-8"),
        ("/.well-known/token", "public", "application/octet-stream"),
    ] {
        // Twice: from the disk, and from memory once it is there.
        for _ in 0..2 {
            let answer = site.get(path, "");
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, text),
                "{path}"
            );
            assert_eq!(header(&answer, "content-type"), kind, "{path}");
            assert_eq!(header(&answer, "content-length"), text.len().to_string());
            assert_eq!(header(&answer, "accept-ranges"), "bytes");
            assert!(
                header(&answer, "etag").starts_with('"')
                    && header(&answer, "last-modified").ends_with("GMT")
            );
            let head = site.ask("HEAD", path, "");
            for name in ["content-length", "content-type", "etag", "last-modified"] {
                assert_eq!(head.header(name), answer.header(name), "{path} {name}");
            }
        }
    }
    for path in [
        "/none",
        "/digits.txt/",
        "/digits.txt/x",
        "/bare/",
        "/bare",
        "/none/",
    ] {
        assert_eq!(site.get(path, "").status, 404, "{path}");
    }
    let long = format!("/{}", "x".repeat(300));
    assert_eq!(site.get(&long, "").status, 404);
}

#[test]
fn only_get_and_head() {
    let site = Site::start("");
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"] {
        let answer = site.ask(method, "/", "content-length: 0\r\n");
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(header(&answer, "allow"), "GET, HEAD, OPTIONS");
    }
    let answer = site.ask("OPTIONS", "/", "");
    assert_eq!(
        (answer.status, header(&answer, "allow")),
        (204, "GET, HEAD, OPTIONS")
    );
}

#[test]
fn nothing_outside_and_nothing_hidden() {
    for more in [
        "",
        ", browse = true",
        ", follow_symlinks = true, browse = true",
    ] {
        let site = Site::start(more);
        for path in [
            "/../secret.txt",
            "/..%2fsecret.txt",
            "/%2e%2e/secret.txt",
            "/%2e%2e%2fsecret.txt",
            "/.%2e/secret.txt",
            "/sub/../../secret.txt",
            "/sub/%2e%2e/%2e%2e/secret.txt",
            "/..%5csecret.txt",
            "/..\\secret.txt",
            "/%252e%252e/secret.txt",
            "/%252e%252e%252fsecret.txt",
            "/..;/secret.txt",
            "/....//secret.txt",
            "/%c0%ae%c0%ae/secret.txt",
            "/%c0%ae%c0%ae%c0%afsecret.txt",
            "/%uff0e%uff0e/secret.txt",
            "/digits.txt%00.html",
            "/%00",
            "/..%00/secret.txt",
            "/../www-evil/secret.txt",
            "/-evil/secret.txt",
            "//etc/passwd",
            "/etc/passwd",
            "/%2fetc/passwd",
            "/sub%2findex.html",
            "/link.txt",
            "/abs.txt",
            "/up/secret.txt",
            "/up/www/digits.txt",
            "/.env",
            "/%2eenv",
            "/.git/config",
            "/bare/.hidden",
            "/sub/../.env",
        ] {
            let answer = site.get(path, "");
            assert!(
                matches!(answer.status, 400 | 403 | 404),
                "{path} with `{more}`: {}",
                answer.status
            );
            for word in ["SECRET", "HIDDEN", "root:"] {
                assert!(!answer.text().contains(word), "{path}: {}", answer.text());
            }
        }
        let inside = site.get("/inside.txt", "").status;
        assert_eq!(inside, if more.contains("follow") { 200 } else { 404 });
    }
    let site = Site::start(", hidden = true");
    assert_eq!(site.get("/.env", "").text(), "HIDDEN");
    assert_eq!(site.get("/.git/config", "").text(), "HIDDEN");
    assert_eq!(site.get("/../secret.txt", "").status, 404);
}

#[test]
fn a_fifo_or_a_socket_hangs_nothing() {
    let mut site = Site::start(", browse = true");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        site.path("fifo"),
        rustix::fs::FileType::Fifo,
        0o666.into(),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.path("socket")).unwrap();
    for _ in 0..40 {
        assert_eq!(site.get("/fifo", "").status, 404);
        assert_eq!(site.get("/socket", "").status, 404);
    }
    assert_eq!(site.get("/digits.txt", "").status, 200);
    site.gate.call(Call::post("/stop")).expect(200);
    assert_eq!(site.gate.wait().code(), Some(0));
}

#[test]
fn a_folder_is_led_to_its_slash_and_nowhere_else() {
    let site = Site::start("");
    for (path, to) in [
        ("/sub", "/sub/"),
        ("/sub?a=b&c", "/sub/?a=b&c"),
        ("/%73ub", "/%73ub/"),
        ("//evil.test", "/evil.test/"),
        ("///evil.test", "/evil.test/"),
        ("/x/..//evil.test", "/evil.test/"),
        ("/./sub", "/sub/"),
    ] {
        let answer = site.get(path, "");
        assert_eq!(
            (answer.status, header(&answer, "location")),
            (308, to),
            "{path}"
        );
    }
}

#[test]
fn conditions() {
    let site = Site::start(", cache_control = \"max-age=60\"");
    let first = site.get("/digits.txt", "");
    let (tag, date) = (header(&first, "etag"), header(&first, "last-modified"));
    let earlier = "Mon, 01 Jan 2001 00:00:00 GMT";
    for method in ["GET", "HEAD"] {
        for (fields, status) in [
            (format!("if-none-match: {tag}\r\n"), 304),
            (format!("if-none-match: \"x\", W/{tag}\r\n"), 304),
            ("if-none-match: *\r\n".to_owned(), 304),
            ("if-none-match: \"x\"\r\n".to_owned(), 200),
            (
                format!("if-none-match: \"x\"\r\nif-modified-since: {date}\r\n"),
                200,
            ),
            (format!("if-modified-since: {date}\r\n"), 304),
            (format!("if-modified-since: {earlier}\r\n"), 200),
            (format!("if-match: {tag}\r\n"), 200),
            ("if-match: \"x\"\r\n".to_owned(), 412),
            (format!("if-unmodified-since: {earlier}\r\n"), 412),
            (format!("if-unmodified-since: {date}\r\n"), 200),
            (format!("if-match: {tag}\r\nif-none-match: {tag}\r\n"), 304),
        ] {
            let answer = site.ask(method, "/digits.txt", &fields);
            assert_eq!(answer.status, status, "{method} {fields}");
            if status == 304 {
                assert_eq!(answer.header("etag"), Some(tag));
                assert_eq!(answer.header("cache-control"), Some("max-age=60"));
                assert_eq!(answer.header("vary"), Some("accept-encoding"));
                assert_eq!(answer.header("content-length"), None);
            }
        }
    }
}

#[test]
fn ranges() {
    let site = Site::start("");
    let first = site.get("/digits.txt", "");
    let (tag, date) = (header(&first, "etag"), header(&first, "last-modified"));
    let ask =
        |range: &str, more: &str| site.get("/digits.txt", &format!("range: {range}\r\n{more}"));
    for (range, text, of) in [
        ("bytes=0-0", "0", "0-0/10"),
        ("bytes=2-4", "234", "2-4/10"),
        ("bytes=7-", "789", "7-9/10"),
        ("bytes=-2", "89", "8-9/10"),
        ("bytes=5-99999999999999999999", "56789", "5-9/10"),
    ] {
        let answer = ask(range, "");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (206, text),
            "{range}"
        );
        assert_eq!(header(&answer, "content-range"), format!("bytes {of}"));
        assert_eq!(header(&answer, "content-length"), text.len().to_string());
        assert_eq!(answer.header("etag"), Some(tag));
    }
    for range in ["bytes=10-", "bytes=99999999999999999999-", "bytes=-0"] {
        let answer = ask(range, "");
        assert_eq!(
            (answer.status, header(&answer, "content-range")),
            (416, "bytes */10"),
            "{range}"
        );
    }
    let many = (0..500)
        .map(|n| format!("{n}-"))
        .collect::<Vec<_>>()
        .join(",");
    for range in [
        "bytes=5-2",
        "bytes=x",
        "lines=1-2",
        "bytes=0-5,3-8",
        "bytes=0-,0-,0-",
        &format!("bytes={many}"),
    ] {
        let answer = ask(range, "");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "0123456789"),
            "{range}"
        );
    }
    for (more, status) in [
        (format!("if-range: {tag}\r\n"), 206),
        (format!("if-range: {date}\r\n"), 206),
        ("if-range: \"x\"\r\n".to_owned(), 200),
        (format!("if-range: W/{tag}\r\n"), 200),
        (
            "if-range: Mon, 01 Jan 2001 00:00:00 GMT\r\n".to_owned(),
            200,
        ),
        (format!("if-none-match: {tag}\r\n"), 304),
        ("if-match: \"x\"\r\n".to_owned(), 412),
    ] {
        assert_eq!(ask("bytes=1-2", &more).status, status, "{more}");
    }
    let head = site.ask("HEAD", "/digits.txt", "range: bytes=0-1\r\n");
    assert_eq!((head.status, header(&head, "content-length")), (200, "10"));
    assert_eq!(site.get("/empty.txt", "range: bytes=0-\r\n").status, 200);

    let several = ask("bytes=8-9, 0-1", "");
    assert_eq!(several.status, 206);
    let boundary = header(&several, "content-type")
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let part = |of: &str, text: &str| {
        format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes {of}/10\r\n\r\n{text}\r\n"
        )
    };
    let expected = format!(
        "{}{}--{boundary}--\r\n",
        part("8-9", "89"),
        part("0-1", "01")
    );
    assert_eq!(several.text(), expected);
    assert_eq!(
        header(&several, "content-length"),
        expected.len().to_string()
    );
}

#[test]
fn compressed_siblings_by_what_the_client_takes() {
    let site = Site::start("");
    for (accept, text, coding) in [
        ("gzip, deflate, br, zstd", "BR", Some("br")),
        ("gzip", "GZ", Some("gzip")),
        ("gzip;q=1, br;q=0.5", "GZ", Some("gzip")),
        ("zstd", "plain plain plain", None),
        ("br;q=0", "plain plain plain", None),
        ("identity", "plain plain plain", None),
    ] {
        let answer = site.get("/app.js", &format!("accept-encoding: {accept}\r\n"));
        assert_eq!(
            (answer.text().as_str(), answer.header("content-encoding")),
            (text, coding),
            "{accept}"
        );
        assert_eq!(answer.header("vary"), Some("accept-encoding"));
        assert_eq!(
            header(&answer, "content-type"),
            "text/javascript; charset=utf-8"
        );
    }
    let tags: BTreeSet<String> = ["br", "gzip", "identity"]
        .iter()
        .map(|accept| {
            header(
                &site.get("/app.js", &format!("accept-encoding: {accept}\r\n")),
                "etag",
            )
            .to_owned()
        })
        .collect();
    assert_eq!(tags.len(), 3);
    assert_eq!(
        site.get("/photo.png", "accept-encoding: br\r\n")
            .header("vary"),
        None
    );
    let direct = site.get("/app.js.gz", "");
    assert_eq!(
        (direct.text().as_str(), direct.header("content-encoding")),
        ("GZ", None)
    );

    let site = Site::start(", precompressed = []");
    let answer = site.get("/app.js", "accept-encoding: br\r\n");
    assert_eq!(
        (answer.text().as_str(), answer.header("vary")),
        ("plain plain plain", None)
    );
}

#[test]
fn tries_and_index_files() {
    let site = Site::start(", try = [\"{path}\", \"/index.html\"], cache_control = \"no-cache\"");
    for path in [
        "/",
        "/app/route",
        "/sub",
        "/.env",
        "/%2e%2e%2fsecret.txt/../x",
    ] {
        let answer = site.get(path, "");
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "<h1>home</h1>"),
            "{path}"
        );
        assert_eq!(header(&answer, "cache-control"), "no-cache");
        assert_eq!(header(&answer, "content-type"), "text/html; charset=utf-8");
    }
    assert_eq!(site.get("/digits.txt", "").text(), "0123456789");
    let site = Site::start(
        ", index = [\"none.html\", \"x\"], try = [\"/bare/{query.d}/\", \"/{host}.txt\"]",
    );
    assert_eq!(site.get("/any?d=dir", "").text(), "x");
    assert_eq!(site.get("/any?d=../../www/bare/dir", "").status, 404);
    let mut conn = Conn::open(site.to).unwrap();
    let answer = conn
        .exchange("GET / HTTP/1.1\r\nhost: digits\r\n\r\n")
        .unwrap();
    assert_eq!(answer.text(), "0123456789");
}

#[test]
fn a_folder_is_shown_where_that_is_asked_for() {
    let site = Site::start(", browse = true");
    let answer = site.get("/bare/", "");
    assert_eq!(
        (answer.status, header(&answer, "content-type")),
        (200, "text/html; charset=utf-8")
    );
    let text = answer.text();
    assert!(
        text.contains("<a href=\"./a%3Cb%3E.txt\">a&lt;b&gt;.txt</a>"),
        "{text}"
    );
    assert!(
        text.find("dir/").unwrap() < text.find("a&lt;b").unwrap(),
        "{text}"
    );
    assert!(!text.contains("hidden"), "{text}");
    assert_eq!(site.get("/bare/a%3Cb%3E.txt", "").text(), "a");
    let answer = site.get("/bare/", "accept: application/json\r\n");
    assert_eq!(
        (header(&answer, "content-type"), header(&answer, "vary")),
        ("application/json", "accept")
    );
    let list = answer.json();
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["dir", "a<b>.txt"]);
    assert_eq!(
        (&list[0]["type"], &list[1]["size"]),
        (&"directory".into(), &1.into())
    );
    // An index file is nearer, and the list asks for its slash.
    assert_eq!(site.get("/sub/", "").text(), "sub");
    assert_eq!(header(&site.get("/bare", ""), "location"), "/bare/");
    let head = site.ask("HEAD", "/bare/", "");
    assert_eq!(
        (head.status, header(&head, "content-length")),
        (200, text.len().to_string().as_str())
    );
    std::fs::remove_file(site.path("index.html")).unwrap();
    let text = site.get("/", "").text();
    for name in ["link.txt", "abs.txt", "inside.txt", ".env"] {
        assert!(!text.contains(name), "{name} in {text}");
    }
}

#[test]
fn a_changed_file_shows_at_once() {
    let site = Site::start("");
    let path = site.path("page.txt");
    let old = SystemTime::now() - Duration::from_secs(3600);
    let mut tags = BTreeSet::new();
    for n in 0..50 {
        // Of equal length, in place and by rename.
        let text = format!("version {n:03}");
        if n % 2 == 0 {
            std::fs::write(&path, &text).unwrap();
        } else {
            let new = site.path("page.new");
            std::fs::write(&new, &text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        }
        for _ in 0..3 {
            let answer = site.get("/page.txt", "");
            assert_eq!(answer.text(), text);
            tags.insert(header(&answer, "etag").to_owned());
        }
    }
    assert!(tags.len() > 25, "{tags:?}");
    // With its time put back.
    std::fs::write(&path, "version zzz").unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(old)
        .unwrap();
    assert_eq!(site.get("/page.txt", "").text(), "version zzz");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(site.get("/page.txt", "").status, 404);
    // The root itself may be switched.
    let root = site.dir.path().join("www");
    std::fs::rename(&root, site.dir.path().join("old")).unwrap();
    assert_eq!(site.get("/digits.txt", "").status, 404);
    symlink("old", &root).unwrap();
    assert_eq!(site.get("/digits.txt", "").text(), "0123456789");
}

#[test]
fn what_is_in_memory_is_answered_like_what_is_on_the_disk() {
    // Old enough to be kept: a file that changed just now is not.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/www");
    let text = std::fs::read_to_string(root.join("index.html")).unwrap();
    let to = local(free_port());
    let _gate = Gate::start(&config(to, &root, ""));
    let mut conn = Conn::open(to).unwrap();
    let mut ask = |method: &str, more: &str| {
        conn.send(format!("{method} / HTTP/1.1\r\nhost: x\r\n{more}\r\n"))
            .unwrap();
        conn.response_to(method).unwrap()
    };
    let first = ask("GET", "");
    for _ in 0..20 {
        let again = ask("GET", "");
        assert_eq!((again.status, again.text()), (200, text.clone()));
        assert_eq!(again.header("etag"), first.header("etag"));
        let part = ask("GET", "range: bytes=2-8\r\n");
        assert_eq!((part.status, part.text().as_str()), (206, &text[2..9]));
        let several = ask("GET", "range: bytes=0-1,-1\r\n");
        assert!(several.status == 206 && several.text().contains("bytes 0-1/"));
        let same = ask(
            "GET",
            &format!("if-none-match: {}\r\n", header(&first, "etag")),
        );
        assert_eq!((same.status, same.body.len()), (304, 0));
        let head = ask("HEAD", "");
        assert_eq!(
            head.header("content-length"),
            first.header("content-length")
        );
        assert_eq!(ask("GET", "range: bytes=99999-\r\n").status, 416);
    }
}

const LARGE: usize = 10 * 1024 * 1024;

/// Bytes without a period that a mistake could hide in.
fn large(site: &Site) -> Vec<u8> {
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    })
    .take(LARGE)
    .collect();
    std::fs::write(site.path("large.bin"), &bytes).unwrap();
    bytes
}

#[test]
fn a_large_file_comes_whole_and_in_parts() {
    let site = Site::start("");
    let bytes = large(&site);
    let wanted = Sha256::digest(&bytes);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let to = site.to;
            std::thread::spawn(move || Sha256::digest(get(to, "x", "/large.bin").body))
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), wanted);
    }
    let part = site.get("/large.bin", "range: bytes=1000000-2000000\r\n");
    assert_eq!(
        (part.status, &part.body[..]),
        (206, &bytes[1_000_000..=2_000_000])
    );
    let several = site.get("/large.bin", "range: bytes=70000-140000,-65537\r\n");
    let body = several.body;
    let holds = |wanted: &[u8]| body.windows(wanted.len()).any(|w| w == wanted);
    assert!(holds(&bytes[70_000..=70_100]) && holds(&bytes[LARGE - 100..]));
    assert!(body.len() > 70_001 + 65_537 && body.len() < 70_001 + 65_537 + 1000);
    let head = site.ask("HEAD", "/large.bin", "");
    assert_eq!(header(&head, "content-length"), LARGE.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_2() {
    let site = Site::start("");
    let bytes = large(&site);
    let h2 = crate::kit::h2c::H2::open(site.to).await;
    let uri = |path: &str| format!("http://x{path}");
    let (head, body, _) = crate::kit::h2c::send(h2.stream(), "GET", &uri("/large.bin"), "")
        .await
        .unwrap();
    assert_eq!(head.headers["content-length"], LARGE.to_string().as_str());
    assert_eq!(Sha256::digest(body), Sha256::digest(&bytes));
    let (head, body, _) = crate::kit::h2c::send(h2.stream(), "HEAD", &uri("/digits.txt"), "")
        .await
        .unwrap();
    assert_eq!(
        (head.headers["content-length"].as_bytes(), body.len()),
        (&b"10"[..], 0)
    );
}

/// Begins a download and takes the head only: the rest fills the buffers between.
fn begin(to: SocketAddr) -> (Conn, u64) {
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /large.bin HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let length = conn.response_head().unwrap().head.length().unwrap();
    (conn, length)
}

fn finish((mut conn, length): (Conn, u64)) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    conn.body(false, Some(length), |piece| body.extend_from_slice(piece))?;
    Ok(body)
}

#[test]
fn a_download_outlives_swaps_that_do_not_concern_it() {
    let site = Site::start("");
    let bytes = large(&site);
    let download = begin(site.to);
    let root = site.path("");
    let text = config(site.to, &root, "");
    for n in 0..5 {
        let more = format!("[[http.web.routes]]\nmatch.path = \"/r{n}\"\nrespond = \"{n}\"\n");
        site.gate
            .call(
                Call::post("/reload?drain_timeout=100ms")
                    .toml(&site.gate.document(&format!("{text}{more}"))),
            )
            .expect(200);
    }
    site.gate.wait_settled();
    assert_eq!(finish(download).unwrap(), bytes);

    // Its own definition goes: it is cut at the deadline, and does not look whole.
    let download = begin(site.to);
    let gone = format!("[http.web]\nlisten = \"{}\"\nrespond = \"gone\"\n", site.to);
    site.gate
        .call(Call::post("/reload?drain_timeout=100ms").toml(&site.gate.document(&gone)))
        .expect(200);
    until("the old generation to be gone", || {
        (site.gate.status()["generations"].as_array().unwrap().len() == 1).then_some(())
    });
    assert!(finish(download).is_err());
    assert_eq!(get(site.to, "x", "/").text(), "gone");
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_does_not_look_whole() {
    let site = Site::start("");
    large(&site);
    let download = begin(site.to);
    std::fs::File::options()
        .write(true)
        .open(site.path("large.bin"))
        .unwrap()
        .set_len(1)
        .unwrap();
    assert!(finish(download).is_err());
    assert_eq!(site.get("/digits.txt", "").status, 200);
}

#[test]
fn a_root_that_is_no_folder_is_refused_with_its_place() {
    let site = Site::start("");
    for (root, route) in [("none", false), ("digits.txt", false), ("none", true)] {
        let root = site.path(root);
        let text = if route {
            format!(
                "[http.web]\nlisten = \"{}\"\n[[http.web.routes]]\nfiles = \"{}\"\n",
                site.to,
                root.display()
            )
        } else {
            config(site.to, &root, "")
        };
        let answer = site
            .gate
            .call(Call::post("/reload").toml(&site.gate.document(&text)));
        let problem = answer.expect(409);
        let pointer = if route {
            "/http/web/routes/0/files/root"
        } else {
            "/http/web/files/root"
        };
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
        assert_eq!(site.get("/digits.txt", "").status, 200);
    }
    for (bad, pointer) in [
        ("try = []", "/try"),
        ("try = \"x\"", "/try/0"),
        ("try = \"/../x\"", "/try/0"),
        ("index = \"../x\"", "/index/0"),
        ("cache_control = \"\"", "/cache_control"),
        ("precompressed = \"deflate\"", "/precompressed/0"),
    ] {
        let text = config(site.to, &site.path(""), &format!(", {bad}"));
        let answer = site
            .gate
            .call(Call::post("/reload").toml(&site.gate.document(&text)));
        let problem = answer.expect(422);
        let found = problem["errors"][0]["pointer"].as_str().unwrap();
        assert!(pointer_fits(found, pointer), "{bad}: {problem}");
    }
}

/// One value stands for a list, so either place will do.
fn pointer_fits(found: &str, wanted: &str) -> bool {
    let base = "/http/web/files";
    found == format!("{base}{wanted}")
        || found == format!("{base}{}", wanted.trim_end_matches("/0"))
}
