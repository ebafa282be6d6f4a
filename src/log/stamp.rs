//! The time of a line, written once a second and copied into the others.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The last second's texts.
#[derive(Debug, Default)]
pub struct Stamp {
    second: u64,
    milli: u32,
    common: String,
    rfc3339: String,
}

impl Stamp {
    /// Turns to `now`.
    pub fn set(&mut self, now: SystemTime) {
        // Before 1970 the clock is not set.
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.milli = since.subsec_millis();
        let second = since.as_secs();
        if second == self.second && !self.common.is_empty() {
            return;
        }
        self.second = second;
        let at = i64::try_from(second)
            .ok()
            .and_then(|s| Timestamp::from_second(s).ok());
        let at = at.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
        self.common = at.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
        self.rfc3339 = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    }

    /// `25/Nov/2026:01:34:36 +0000`, as Apache has it.
    pub fn common(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.common.as_bytes());
    }

    /// `2026-11-25T01:34:36.123Z`.
    pub fn rfc3339(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.rfc3339.as_bytes());
        let digit = |n: u32| b'0' + u8::try_from(n % 10).unwrap_or(0);
        let milli = self.milli;
        out.extend_from_slice(&[
            b'.',
            digit(milli / 100),
            digit(milli / 10),
            digit(milli),
            b'Z',
        ]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn texts(stamp: &mut Stamp, millis: u64) -> (String, String) {
        stamp.set(UNIX_EPOCH + Duration::from_millis(millis));
        let (mut common, mut rfc) = (Vec::new(), Vec::new());
        stamp.common(&mut common);
        stamp.rfc3339(&mut rfc);
        (
            String::from_utf8(common).unwrap(),
            String::from_utf8(rfc).unwrap(),
        )
    }

    #[test]
    fn a_second_is_written_once_and_its_milliseconds_each_time() {
        let mut stamp = Stamp::default();
        let (common, rfc) = texts(&mut stamp, 951_782_399_009);
        assert_eq!(common, "28/Feb/2000:23:59:59 +0000");
        assert_eq!(rfc, "2000-02-28T23:59:59.009Z");
        assert_eq!(
            texts(&mut stamp, 951_782_399_990).1,
            "2000-02-28T23:59:59.990Z"
        );
        assert_eq!(
            texts(&mut stamp, 951_782_400_000).0,
            "29/Feb/2000:00:00:00 +0000"
        );
        assert_eq!(texts(&mut stamp, 0).1, "1970-01-01T00:00:00.000Z");
    }
}
