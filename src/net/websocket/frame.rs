//! Frames of RFC 6455 section 5, written, and read however they are cut: no sockets, no clocks.

/// Two bytes, the longest length, a mask.
pub(super) const HEADER: usize = 14;
pub(super) const FIN: u8 = 0x80;
pub(super) const MASKED: u8 = 0x80;
pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// Which side is ours: a client masks what it writes and nobody else does (section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// Finds in frames of the other side what they carry.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) role: Role,
    header: [u8; HEADER],
    /// Bytes of a header that have come.
    pub(super) have: usize,
    /// Of the payload that is passing.
    pub(super) left: u64,
    /// From the next byte on.
    mask: [u8; 4],
    /// What passes belongs to no message.
    control: Option<(u8, Vec<u8>)>,
    /// A message goes on in the next frame of data.
    fragmented: bool,
    /// To be answered.
    pub(super) ping: Option<Vec<u8>>,
    /// A Close has come, with its reason if it gave one.
    pub(super) closed: Option<Option<u16>>,
}

/// It is no websocket, or not one as was agreed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) &'static str);

impl Decoder {
    pub(super) fn new(role: Role) -> Decoder {
        Decoder {
            role,
            header: [0; HEADER],
            have: 0,
            left: 0,
            mask: [0; 4],
            control: None,
            fragmented: false,
            ping: None,
            closed: None,
        }
    }

    /// Puts what `bytes` carry at their beginning; returns how much that is. Nothing counts after a Close.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() && self.closed.is_none() {
            if self.left == 0 {
                self.header[self.have] = bytes[from];
                self.have += 1;
                from += 1;
                if self.have >= 2 && self.have == self.header_size() {
                    self.have = 0;
                    self.begin()?;
                }
                continue;
            }
            let rest = bytes.len() - from;
            let size = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
            if self.role == Role::Server {
                mask(&mut bytes[from..from + size], self.mask);
                self.mask.rotate_left(size % 4);
            }
            self.left -= size as u64;
            if let Some((_, payload)) = &mut self.control {
                payload.extend_from_slice(&bytes[from..from + size]);
                if self.left == 0 {
                    self.control()?;
                }
            } else {
                bytes.copy_within(from..from + size, to);
                to += size;
            }
            from += size;
        }
        Ok(to)
    }

    /// Nothing of a frame has come that is not whole.
    pub(super) fn is_between_frames(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    fn header_size(&self) -> usize {
        let length = match self.header[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & MASKED == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// The header is whole.
    fn begin(&mut self) -> Result<(), Violation> {
        let [first, second, rest @ ..] = self.header;
        let (bytes, size) = match second & !MASKED {
            126 => (2, 0),
            127 => (8, 0),
            short => (0, u64::from(short)),
        };
        let long = rest[..bytes].iter();
        self.left = long.fold(size, |size, byte| size << 8 | u64::from(*byte));
        match (self.role, second & MASKED == 0) {
            (Role::Server, true) => return Err(Violation("a frame of a client without a mask")),
            (Role::Client, false) => return Err(Violation("a frame of a server with a mask")),
            (Role::Server, false) => self.mask.copy_from_slice(&rest[bytes..bytes + 4]),
            (Role::Client, true) => {}
        }
        if first & 0x70 != 0 {
            return Err(Violation("a reserved bit"));
        }
        if self.left > u64::MAX / 2 {
            return Err(Violation("a length beyond the longest"));
        }
        let last = first & FIN != 0;
        match first & 0x0f {
            CONTINUATION if !self.fragmented => Err(Violation("a continuation of nothing")),
            TEXT | BINARY if self.fragmented => Err(Violation("a message within another")),
            CONTINUATION | TEXT | BINARY => {
                self.fragmented = !last;
                self.control = None;
                Ok(())
            }
            CLOSE | PING | PONG if !last || self.left > 125 => {
                Err(Violation("a control frame that is too long, or in pieces"))
            }
            opcode @ (CLOSE | PING | PONG) => {
                self.control = Some((opcode, Vec::new()));
                if self.left == 0 {
                    self.control()
                } else {
                    Ok(())
                }
            }
            _ => Err(Violation("an unknown opcode")),
        }
    }

    /// A control frame is whole.
    fn control(&mut self) -> Result<(), Violation> {
        match self.control.take() {
            Some((CLOSE, reason)) => match reason[..] {
                [] => self.closed = Some(None),
                [_] => return Err(Violation("a Close with half a reason")),
                [high, low, ..] => {
                    let code = u16::from_be_bytes([high, low]);
                    if !is_code(code) {
                        return Err(Violation("a Close with a reason that is none"));
                    }
                    self.closed = Some(Some(code));
                }
            },
            Some((PING, payload)) => self.ping = Some(payload),
            _ => {}
        }
        Ok(())
    }
}

/// Whether a Close may say this (sections 7.4.1 and 7.4.2, with what the registry has added).
pub(super) fn is_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Masks, or takes the mask away: it is the same.
pub(super) fn mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (wide, rest) = bytes.as_chunks_mut::<8>();
    for eight in wide {
        *eight = (u64::from_ne_bytes(*eight) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// A whole frame. `key`: of a client.
pub(super) fn put_frame(out: &mut Vec<u8>, opcode: u8, key: Option<[u8; 4]>, payload: &[u8]) {
    out.reserve(HEADER + payload.len());
    out.push(FIN | opcode);
    let masked = if key.is_some() { MASKED } else { 0 };
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ 0..126), _) => out.push(masked | short),
        (_, Ok(middle)) => {
            out.push(masked | 126);
            out.extend(middle.to_be_bytes());
        }
        _ => {
            out.push(masked | 127);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    out.extend(key.into_iter().flatten());
    let at = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = key {
        mask(&mut out[at..], key);
    }
}
