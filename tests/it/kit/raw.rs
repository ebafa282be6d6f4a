//! A blocking HTTP/1 client that shows what is on the wire: what it is told to send it sends, byte for byte, and a
//! response comes back with its interim heads, its framing and its trailers.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use super::PATIENCE;

/// One connection, as client or (in [`super::origin`]) as server.
#[derive(Debug)]
pub(crate) struct Conn<S = TcpStream> {
    pub(crate) stream: S,
    buf: Vec<u8>,
}

/// A message head: its first line and its fields in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
    /// As it came, blank line included.
    pub(crate) text: String,
}

impl Head {
    fn parse(text: &str) -> io::Result<Head> {
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let mut fields = Vec::new();
        for field in lines {
            let Some((name, value)) = field.split_once(':') else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("not a field: {field:?}"),
                ));
            };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Head {
            line,
            fields,
            text: text.to_owned(),
        })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect()
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.get("transfer-encoding")
            .is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked"))
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.get("content-length").and_then(|v| v.parse().ok())
    }
}

/// A whole response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Statuses of the interim responses that came before it.
    pub(crate) interim: Vec<u16>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the connection ended in the middle of a message",
    )
}

impl Conn {
    pub(crate) fn open(to: impl Into<SocketAddr>) -> io::Result<Conn> {
        let stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
        Conn::over(stream)
    }

    /// From a source address of the loopback net: many short connections need more than one address's ports.
    pub(crate) fn open_from(from: IpAddr, to: SocketAddr) -> io::Result<Conn> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Conn::over(socket.into())
    }

    pub(crate) fn over(stream: TcpStream) -> io::Result<Conn> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Conn {
            stream,
            buf: Vec::new(),
        })
    }
}

impl<S: Read + Write> Conn<S> {
    /// Over a stream that has its time limits.
    pub(crate) fn with(stream: S) -> Conn<S> {
        Conn {
            stream,
            buf: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Reads more into the buffer; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    self.buf.extend_from_slice(&piece[..n]);
                    return Ok(n);
                }
            }
        }
    }

    /// The next line, without its CRLF.
    pub(crate) fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line = self.buf.drain(..end + 2).take(end).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.fill()? == 0 {
                return Err(cut());
            }
        }
    }

    /// The next head; `None` when the peer closed between messages.
    pub(crate) fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = self.buf.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.buf.drain(..end + 4).collect::<Vec<u8>>();
                return Head::parse(&String::from_utf8_lossy(&head)).map(Some);
            }
            if self.fill()? == 0 {
                return if self.buf.is_empty() {
                    Ok(None)
                } else {
                    Err(cut())
                };
            }
        }
    }

    /// A piece of at most `most` bytes of what follows, empty at the end.
    pub(crate) fn some(&mut self, most: usize) -> io::Result<Vec<u8>> {
        if self.buf.is_empty() {
            self.fill()?;
        }
        let n = self.buf.len().min(most);
        Ok(self.buf.drain(..n).collect())
    }

    /// Hands a message's body to `sink`, piece by piece, and returns its trailers. `None` for the length with no
    /// chunking: to the end of the connection.
    pub(crate) fn body(
        &mut self,
        chunked: bool,
        length: Option<u64>,
        mut sink: impl FnMut(&[u8]),
    ) -> io::Result<Vec<(String, String)>> {
        if chunked {
            loop {
                let size = self.line()?;
                let size = size.split(';').next().unwrap_or_default().trim();
                let mut left = usize::from_str_radix(size, 16).map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {size:?}"))
                })?;
                if left == 0 {
                    break;
                }
                while left > 0 {
                    let piece = self.some(left)?;
                    if piece.is_empty() {
                        return Err(cut());
                    }
                    left -= piece.len();
                    sink(&piece);
                }
                self.line()?;
            }
            let mut trailers = Vec::new();
            loop {
                let line = self.line()?;
                match line.split_once(':') {
                    Some((name, value)) => {
                        trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()))
                    }
                    None => return Ok(trailers),
                }
            }
        }
        let mut left = length.unwrap_or(u64::MAX);
        while left > 0 {
            let piece = self.some(left.min(1 << 20) as usize)?;
            if piece.is_empty() {
                if length.is_some() {
                    return Err(cut());
                }
                break;
            }
            left -= piece.len() as u64;
            sink(&piece);
        }
        Ok(Vec::new())
    }

    /// The head of the next final response and the interim statuses before it.
    pub(crate) fn response_head(&mut self) -> io::Result<Response> {
        let mut interim = Vec::new();
        loop {
            let head = self.head()?.ok_or_else(|| {
                io::Error::new(io::ErrorKind::UnexpectedEof, "closed, no response")
            })?;
            let status = head.line.split(' ').nth(1).and_then(|s| s.parse().ok());
            let Some(status) = status else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("status line {:?}", head.line),
                ));
            };
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            return Ok(Response {
                status,
                head,
                interim,
                ..Response::default()
            });
        }
    }

    /// The next whole response to a request of `method`.
    pub(crate) fn response_to(&mut self, method: &str) -> io::Result<Response> {
        let mut response = self.response_head()?;
        if method == "HEAD" || matches!(response.status, 204 | 304) {
            return Ok(response);
        }
        let mut body = Vec::new();
        let chunked = response.head.is_chunked();
        let length = response.head.length();
        response.trailers = self.body(chunked, length, |piece| body.extend_from_slice(piece))?;
        response.body = body;
        Ok(response)
    }

    pub(crate) fn response(&mut self) -> io::Result<Response> {
        self.response_to("GET")
    }

    pub(crate) fn exchange(&mut self, request: impl AsRef<[u8]>) -> io::Result<Response> {
        self.send(request)?;
        self.response()
    }

    /// Waits for the peer's close. A reset counts as one; more bytes do not.
    pub(crate) fn closed(&mut self) -> bool {
        self.buf.is_empty()
            && match self.fill() {
                Ok(n) => n == 0,
                Err(e) => matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                ),
            }
    }
}

/// One GET on a connection of its own, which must be answered.
pub(crate) fn get(to: SocketAddr, host: &str, path: &str) -> Response {
    try_get(to, host, path).unwrap_or_else(|e| panic!("GET {path} from {host} at {to}: {e}"))
}

pub(crate) fn try_get(to: SocketAddr, host: &str, path: &str) -> io::Result<Response> {
    Conn::open(to)?.exchange(format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    ))
}

/// True when nothing listens there.
pub(crate) fn refused(to: SocketAddr) -> bool {
    matches!(TcpStream::connect_timeout(&to, PATIENCE), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}
