//! SOCKS as a server speaks it, without a socket: bytes to requests and replies to bytes. Version 5 (RFC 1928, RFC 1929)
//! is in [`v5`], version 4 with 4a in [`v4`], the header of datagrams in [`datagram`].
//!
//! Every parser takes what has come so far and says what it is, with its length, or that more must come; what it has
//! said of a beginning it says of every continuation. No message is longer than [`MOST`] bytes.

pub mod datagram;
pub mod v4;
pub mod v5;

/// Bytes of the longest message: version 4a with a user and a name, each with the zero that ends it.
pub const MOST: usize = 8 + 256 + 256;

/// What a parser has found: a message and its length; `None`: more must come.
pub type Parsed<T, E> = Result<Option<(T, usize)>, E>;

/// What became of a request (RFC 1928 section 6), by its code in version 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Succeeded = 0,
    Failed = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    Refused = 5,
    Expired = 6,
    NoSuchCommand = 7,
    NoSuchAddressType = 8,
}
