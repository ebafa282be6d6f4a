//! A response's content on its way through an encoder. What is promised: a piece that the source has is on its way as soon
//! as the source has no other (a stream is never held back for the sake of a better ratio); at most [`STEP`] bytes are
//! compressed before other requests of the worker get their turn, which is about a millisecond; and a response holds one
//! piece and the encoder's window, whose sizes are bounded below.
//!
//! Compressing happens on the worker's own thread: to hand each piece to another thread and back costs a small answer more
//! than to compress it, and the client that reads slowly slows the encoder as it should.

use std::fmt;
use std::io::{self, Write};
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http_body::Frame;

use super::body::Content;
use crate::config::http::FileCoding;
use crate::upstream::error::{Error, Kind};

/// Bytes that are compressed at a time, and before others get their turn.
const STEP: usize = 32 * 1024;

// Levels beyond which each percent costs much more time; windows that a client must take (RFC 9659), and small enough
// that a response costs a megabyte or two.
const GZIP_LEVEL: u32 = 5;
const ZSTD_LEVEL: i32 = 3;
/// 256 KiB, as brotli's.
const ZSTD_WINDOW: u32 = 18;
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW: u32 = 18;
/// From 1 MiB on it takes tables of several MiB.
const BROTLI_HINT: usize = (1 << 20) - 1;

/// Compressed content.
pub struct Compressed {
    source: Content,
    encoder: Encoder,
    /// What the source gave and the encoder has not had.
    input: Bytes,
    /// The encoder holds back what it was given.
    held: bool,
    /// Bytes compressed since others had their turn.
    spent: usize,
    trailers: Option<Frame<Bytes>>,
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    /// All is said.
    Done,
}

impl fmt::Debug for Compressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressed")
            .field("source", &self.source)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl Compressed {
    /// # Errors
    /// The content, if there is no memory for an encoder.
    pub(super) fn new(source: Content, coding: FileCoding) -> Result<Compressed, Content> {
        let length = source.size_hint().exact();
        let Ok(encoder) = Encoder::new(coding, length) else {
            return Err(source);
        };
        Ok(Compressed {
            source,
            encoder,
            input: Bytes::new(),
            held: false,
            spent: 0,
            trailers: None,
        })
    }

    /// True once nothing more will come.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.encoder, Encoder::Done) && self.trailers.is_none()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if matches!(self.encoder, Encoder::Done) {
            return Poll::Ready(self.trailers.take().map(Ok));
        }
        loop {
            if self.spent >= STEP {
                self.spent = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if !self.input.is_empty() {
                let piece = self.input.split_to(self.input.len().min(STEP));
                self.spent += piece.len();
                self.held = true;
                if let Err(error) = self.encoder.write(&piece) {
                    return self.fail(&error);
                }
                match self.taken() {
                    Some(frame) => return Poll::Ready(Some(Ok(frame))),
                    None => continue,
                }
            }
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.input = data,
                    // Trailers end a body.
                    Err(trailers) => {
                        self.trailers = Some(trailers);
                        return self.finish();
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    self.encoder = Encoder::Done;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => return self.finish(),
                Poll::Pending if self.held => {
                    self.held = false;
                    if let Err(error) = self.encoder.flush() {
                        return self.fail(&error);
                    }
                    // The source will wake us; what it had is on its way.
                    return match self.taken() {
                        Some(frame) => Poll::Ready(Some(Ok(frame))),
                        None => Poll::Pending,
                    };
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn taken(&mut self) -> Option<Frame<Bytes>> {
        let out = self.encoder.out()?;
        (!out.is_empty()).then(|| Frame::data(Bytes::from(std::mem::take(out))))
    }

    fn finish(&mut self) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match std::mem::replace(&mut self.encoder, Encoder::Done).finish() {
            Ok(last) if last.is_empty() => Poll::Ready(self.trailers.take().map(Ok)),
            Ok(last) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(last))))),
            Err(error) => self.fail(&error),
        }
    }

    /// What was sent must not look whole then.
    fn fail(&mut self, error: &io::Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.encoder = Encoder::Done;
        self.trailers = None;
        let detail = format!("a response while it was compressed: {error}");
        Poll::Ready(Some(Err(Error::us(Kind::ProxyInternalError, detail))))
    }
}

impl Encoder {
    fn new(coding: FileCoding, length: Option<u64>) -> io::Result<Encoder> {
        Ok(match coding {
            FileCoding::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Encoder::Gzip(GzEncoder::new(Vec::new(), level))
            }
            FileCoding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW)?;
                // A small body then has small tables.
                encoder.set_pledged_src_size(length)?;
                Encoder::Zstd(encoder)
            }
            FileCoding::Brotli => {
                let params = brotli::enc::BrotliEncoderParams {
                    quality: BROTLI_QUALITY as i32,
                    lgwin: BROTLI_WINDOW as i32,
                    size_hint: usize::try_from(length.unwrap_or(0))
                        .map_or(BROTLI_HINT, |l| l.min(BROTLI_HINT)),
                    ..Default::default()
                };
                let writer = brotli::CompressorWriter::with_params(Vec::new(), 4096, &params);
                Encoder::Brotli(Box::new(writer))
            }
        })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.write_all(piece),
            Encoder::Zstd(encoder) => encoder.write_all(piece),
            Encoder::Brotli(encoder) => encoder.write_all(piece),
            Encoder::Done => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
            Encoder::Brotli(encoder) => encoder.flush(),
            Encoder::Done => Ok(()),
        }
    }

    /// Where what it made gathers.
    fn out(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Encoder::Gzip(encoder) => Some(encoder.get_mut()),
            Encoder::Zstd(encoder) => Some(encoder.get_mut()),
            Encoder::Brotli(encoder) => Some(encoder.get_mut()),
            Encoder::Done => None,
        }
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
            Encoder::Brotli(encoder) => Ok(encoder.into_inner()),
            Encoder::Done => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;

    use futures_util::task::noop_waker_ref;
    use proptest::prelude::*;

    use super::*;

    fn decoded(coding: FileCoding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match coding {
            FileCoding::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out),
            FileCoding::Zstd => zstd::stream::read::Decoder::new(bytes)
                .unwrap()
                .read_to_end(&mut out),
            FileCoding::Brotli => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        }
        .unwrap();
        out
    }

    const ALL: [FileCoding; 3] = [FileCoding::Gzip, FileCoding::Zstd, FileCoding::Brotli];

    #[tokio::test]
    async fn byte_for_byte_in_bounded_pieces() {
        // Text, then what can't be compressed.
        let mut body = "a line of text that comes again\n"
            .repeat(40_000)
            .into_bytes();
        body.extend((0..300_000).map(|_| fastrand::u8(..)));
        for coding in ALL {
            let content = Content::from(Bytes::from(body.clone()));
            let mut compressed = Compressed::new(content, coding).unwrap();
            let mut out = Vec::new();
            while let Some(frame) = poll_fn(|cx| compressed.poll_frame(cx)).await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(data.len() <= 1 << 20, "{}", data.len());
                out.extend_from_slice(&data);
            }
            assert!(compressed.is_end());
            assert!(out.len() < 400_000, "{coding:?} {}", out.len());
            assert_eq!(decoded(coding, &out), body, "{coding:?}");
        }
    }

    #[test]
    fn others_get_their_turn() {
        let body = Bytes::from(vec![b'x'; 1 << 20]);
        let mut compressed = Compressed::new(Content::from(body), FileCoding::Zstd).unwrap();
        let mut cx = Context::from_waker(noop_waker_ref());
        let mut turns = 0;
        loop {
            match compressed.poll_frame(&mut cx) {
                Poll::Pending => turns += 1,
                Poll::Ready(None) => break,
                Poll::Ready(Some(frame)) => drop(frame.unwrap()),
            }
        }
        assert!(turns >= (1 << 20) / STEP - 1, "{turns}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_written_and_flushed_comes_back(
            pieces in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..2000), any::<bool>()), 0..8),
        ) {
            for coding in ALL {
                let mut encoder = Encoder::new(coding, None).unwrap();
                let mut out = Vec::new();
                for (piece, flush) in &pieces {
                    encoder.write(piece).unwrap();
                    if *flush {
                        encoder.flush().unwrap();
                    }
                    out.append(encoder.out().unwrap());
                }
                out.extend(encoder.finish().unwrap());
                let all: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
                prop_assert_eq!(decoded(coding, &out), all);
            }
        }
    }
}
