//! A file, or parts of one, on its way to a client: a piece is read when the last one was taken, from memory where the
//! system has it there, else on a thread that may block. A client that takes nothing holds one piece at most.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::open;
use super::threads;

/// Bytes read at a time.
const PIECE: u64 = 64 * 1024;

/// What is sent one after the other.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// What stands between parts of a file.
    Text(Bytes),
    File(Range<u64>),
}

impl Part {
    pub(super) fn len(&self) -> u64 {
        match self {
            Part::Text(text) => text.len() as u64,
            Part::File(range) => range.end.saturating_sub(range.start),
        }
    }
}

/// The body of a response with a file.
pub struct FileBody {
    file: Arc<File>,
    parts: VecDeque<Part>,
    /// Bytes not yet handed over.
    left: u64,
    reading: Option<Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send + Sync>>>,
}

impl fmt::Debug for FileBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBody")
            .field("parts", &self.parts)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl FileBody {
    pub(super) fn new(file: File, parts: Vec<Part>) -> FileBody {
        FileBody {
            file: Arc::new(file),
            left: parts.iter().map(Part::len).sum(),
            parts: parts.into(),
            reading: None,
        }
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Those of reading, and one if the file has become shorter than was said: what was sent must not look whole then.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let piece = match self.parts.front() {
            None => return Poll::Ready(None),
            Some(Part::Text(text)) => {
                let text = text.clone();
                self.parts.pop_front();
                Ok(text)
            }
            Some(Part::File(range)) => {
                let (at, length) = (
                    range.start,
                    range.end.saturating_sub(range.start).min(PIECE),
                );
                let read = match self.read_at_once(at, length) {
                    Some(bytes) => Ok(bytes),
                    None => {
                        let file = &self.file;
                        let reading = self
                            .reading
                            .get_or_insert_with(|| Box::pin(read(file.clone(), at, length)));
                        let read = ready!(reading.as_mut().poll(cx));
                        self.reading = None;
                        read
                    }
                };
                if let (Ok(bytes), Some(Part::File(range))) = (&read, self.parts.front_mut()) {
                    range.start += bytes.len() as u64;
                    if range.start >= range.end {
                        self.parts.pop_front();
                    }
                }
                read
            }
        };
        match &piece {
            Ok(bytes) => self.left = self.left.saturating_sub(bytes.len() as u64),
            Err(_) => {
                self.parts.clear();
                self.left = 0;
            }
        }
        Poll::Ready(Some(piece))
    }

    fn read_at_once(&self, at: u64, length: u64) -> Option<Bytes> {
        if self.reading.is_some() {
            return None;
        }
        let mut buffer = vec![0; length as usize];
        let read = open::read_at_once(&self.file, &mut buffer, at)?;
        buffer.truncate(read);
        Some(buffer.into())
    }
}

async fn read(file: Arc<File>, at: u64, length: u64) -> io::Result<Bytes> {
    threads::run(move || {
        let mut buffer = vec![0; length as usize];
        let read = open::read_at(&file, &mut buffer, at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.truncate(read);
        Ok(buffer.into())
    })
    .await?
}

/// Reads all `length` bytes of a small file. May block.
pub(super) fn read_whole(file: &File, length: u64) -> io::Result<Bytes> {
    let mut buffer = vec![0; length as usize];
    let mut have = 0;
    while have < buffer.len() {
        match open::read_at(file, &mut buffer[have..], have as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => have += read,
        }
    }
    Ok(buffer.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn all(mut body: FileBody) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(piece) = poll_fn(|cx| body.poll_piece(cx)).await {
            let piece = piece?;
            assert!(!piece.is_empty() && piece.len() as u64 <= PIECE);
            out.extend_from_slice(&piece);
        }
        assert_eq!(body.left(), 0);
        Ok(out)
    }

    #[tokio::test]
    async fn parts_and_texts_in_order() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, &bytes).unwrap();
        let open = || File::open(&path).unwrap();
        let whole = FileBody::new(open(), vec![Part::File(0..200_000)]);
        assert_eq!(whole.left(), 200_000);
        assert_eq!(all(whole).await.unwrap(), bytes);
        let parts = vec![
            Part::Text("a".into()),
            Part::File(70_000..140_001),
            Part::Text("b".into()),
            Part::File(3..4),
        ];
        let expected = [b"a", &bytes[70_000..140_001], b"b", &bytes[3..4]].concat();
        assert_eq!(all(FileBody::new(open(), parts)).await.unwrap(), expected);
        // A file that has become shorter ends with an error, not early.
        let short = FileBody::new(open(), vec![Part::File(0..200_001)]);
        assert!(all(short).await.is_err());
    }
}
