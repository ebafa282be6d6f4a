//! What the file system says of a file, and the validators that follow from it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use crate::config::http::FileCoding;

/// The last second of the year 9999, up to which HTTP can write a date.
const LAST_SECOND: u64 = 253_402_300_799;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    File,
    Folder,
    /// A FIFO, a socket, a device: never read.
    Other,
}

/// Identity and state of a file. Equal: the same contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stat {
    pub(super) kind: Kind,
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Seconds since 1970 and nanoseconds.
    pub(super) modified: (i64, u32),
    /// Of the inode: also set by a change that puts `modified` back.
    pub(super) changed: (i64, u32),
}

impl Stat {
    /// Whether a change after this would show: clocks of file systems tick coarsely, so one that changed just now may
    /// change again and look the same.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        self.inode != 0 && now >= changed.saturating_add(2)
    }

    /// The validators of a representation of this file.
    pub(super) fn validators(&self, coding: Option<FileCoding>) -> Validators {
        let (seconds, nanos) = self.modified;
        let mut tag = String::with_capacity(40);
        // Not by the inode: the same tree on two machines has the same tags. Writing to a string never fails.
        let _ = write!(tag, "\"{seconds:x}.{nanos:x}-{:x}", self.size);
        if let Some(coding) = coding {
            let _ = write!(tag, "-{}", coding.word());
        }
        tag.push('"');
        let modified = u64::try_from(seconds).unwrap_or(0).min(LAST_SECOND);
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(modified));
        Validators {
            etag: field(&tag),
            modified,
            last_modified: field(&date),
        }
    }
}

/// Both are plain ASCII.
fn field(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// What tells two states of a representation apart (RFC 9110 section 8.8).
#[derive(Debug, Clone)]
pub(super) struct Validators {
    /// Strong.
    pub(super) etag: HeaderValue,
    /// Seconds since 1970.
    pub(super) modified: u64,
    pub(super) last_modified: HeaderValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(modified: i64) -> Stat {
        Stat {
            kind: Kind::File,
            device: 1,
            inode: 2,
            size: 10,
            modified: (modified, 5),
            changed: (modified, 5),
        }
    }

    #[test]
    fn validators_of_any_time() {
        let of = |modified| stat(modified).validators(None);
        assert_eq!(of(0).last_modified, "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(of(-5).last_modified, "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(of(i64::MAX).last_modified, "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(of(16).etag, "\"10.5-a\"");
        let br = stat(16).validators(Some(FileCoding::Brotli));
        assert_eq!(br.etag, "\"10.5-a-br\"");
    }

    #[test]
    fn what_changed_just_now_may_change_again_unseen() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!stat(100).is_settled(at(100)) && !stat(100).is_settled(at(101)));
        assert!(stat(100).is_settled(at(102)) && !stat(100).is_settled(at(50)));
    }
}
