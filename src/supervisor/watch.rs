//! A look each second at the files that certificates come from, and now and then at their ends. It only looks and asks:
//! what is done about it, the actor does between two swaps. Owned by the actor, ends with it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::certificates::{Ask, CertificateStatus, Seen, Watched, list};
use super::handle::Inner;
use crate::document::Document;
use crate::snapshot::Snapshot;

/// Time between two looks at the files; the looks may take a fiftieth of the time at most.
const LOOK: Duration = Duration::from_secs(1);
const MAX_LOOK: Duration = Duration::from_secs(60);
const SHARE: u32 = 50;
/// How long reading the files may take.
const READ: Duration = Duration::from_secs(30);
/// Time between two looks at the ends, if nothing changes.
const ENDS: Duration = Duration::from_secs(60);

/// Fewer whole days than so many are left: said once each.
const WARN: [i64; 4] = [30, 7, 1, 0];
/// From here on it is called "expiring". Seconds.
pub(super) const SOON: i64 = 30 * 24 * 60 * 60;

pub(super) async fn run(inner: Arc<Inner>) {
    let mut files = Follower::default();
    let mut ends = Ends::default();
    // Weak: what is replaced must not live on here.
    let mut looked: Option<(Weak<Snapshot>, Instant)> = None;
    let mut pause = LOOK;
    loop {
        tokio::time::sleep(pause).await;
        let Some((document, snapshot)) = inner.view.load().serving() else {
            continue;
        };
        let again = looked.as_ref().is_none_or(|(last, at)| {
            !std::ptr::eq(last.as_ptr(), Arc::as_ptr(&snapshot)) || at.elapsed() >= ENDS
        });
        if again {
            let now = Timestamp::now();
            for (certificate, word) in ends.look(&list(&snapshot.certificates, now).certificates) {
                let (names, servers) =
                    (certificate.names.join(", "), certificate.servers.join(", "));
                let (source, not_after) = (&certificate.source, &certificate.not_after);
                tracing::warn!(names, servers, source, not_after, "a certificate {word}");
            }
            looked = Some((Arc::downgrade(&snapshot), Instant::now()));
        }
        let started = Instant::now();
        if let Some((seen, aloud)) = files.look(&document, snapshot).await {
            let (reply, answer) = oneshot::channel();
            let seen = Box::new(seen);
            let ask = Ask::Follow { seen, aloud, reply };
            if inner.asks.send(ask).await.is_err() {
                return;
            }
            files.doubtful = answer.await.unwrap_or(false) && !aloud;
        }
        pause = LOOK.max(started.elapsed() * SHARE).min(MAX_LOOK);
    }
}

/// Tells whether the files have to be read again.
#[derive(Default)]
struct Follower {
    /// Weak: the document of one look would live on until the next, and with it a generation too many.
    watched: Option<(Weak<Document>, Watched)>,
    /// Something could not be used a moment ago: perhaps it was being written just then. Said aloud if it stays so.
    doubtful: bool,
}

impl Follower {
    /// `Some`: they had to be; true: what cannot be used now is said.
    async fn look(
        &mut self,
        document: &Arc<Document>,
        snapshot: Arc<Snapshot>,
    ) -> Option<(Seen, bool)> {
        let same = |known: &&(Weak<Document>, Watched)| {
            std::ptr::eq(known.0.as_ptr(), Arc::as_ptr(document))
        };
        if self.watched.as_ref().filter(same).is_none() {
            self.watched = Some((Arc::downgrade(document), Watched::of(document)));
            self.doubtful = false;
        }
        let (_, watched) = self.watched.as_ref()?;
        let deadline = Instant::now() + READ;
        let stamps = watched.stamps(deadline).await;
        let known = &snapshot.pems.stamps;
        let same = stamps.same(known);
        let due = || {
            let ours = snapshot.certificates.renewal();
            ours.is_some_and(|at| Timestamp::now() >= at)
        };
        if same && !self.doubtful && !known.is_fresh() && !due() {
            return None;
        }
        let read = watched.read(&snapshot.pems.files, deadline).await;
        let aloud = same && self.doubtful;
        Some((
            Seen {
                snapshot,
                stamps,
                read,
            },
            aloud,
        ))
    }
}

/// What was said about ends.
#[derive(Default)]
struct Ends {
    /// By certificate: how many of [`WARN`].
    said: HashMap<String, usize>,
}

impl Ends {
    /// Those about which something is to be said now, and what.
    fn look<'a>(
        &mut self,
        certificates: &'a [CertificateStatus],
    ) -> Vec<(&'a CertificateStatus, String)> {
        let mut notices = Vec::new();
        let mut said = HashMap::new();
        for certificate in certificates {
            // Whole days, rounded down: a certificate with an hour left has 0.
            let days = certificate.days_left;
            let due = WARN.iter().filter(|at| days < **at).count();
            let before = self.said.get(&certificate.fingerprint).copied();
            if due > before.unwrap_or(0) && !said.contains_key(&certificate.fingerprint) {
                let word = match days {
                    ..0 => "has expired".to_owned(),
                    0 => "expires within a day".to_owned(),
                    days => format!("expires in {days} days"),
                };
                notices.push((certificate, word));
            }
            said.insert(certificate.fingerprint.clone(), due);
        }
        self.said = said;
        notices
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::document::Context;

    #[tokio::test]
    async fn a_document_does_not_live_on_because_it_was_looked_at() {
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let text = b"[http.web]\nlisten = '127.0.0.1:1'\nrespond = ''\n";
        let document = Document::parse(text, Format::Toml, &context)
            .unwrap()
            .document;
        let mut files = Follower::default();
        let look = files.look(&document, Arc::default());
        assert!(look.await.is_none());
        assert_eq!(Arc::strong_count(&document), 1);
    }

    fn certificate(days_left: i64) -> CertificateStatus {
        CertificateStatus {
            servers: vec!["web".into()],
            names: vec!["a.test".into()],
            not_before: String::new(),
            not_after: String::new(),
            days_left,
            state: String::new(),
            fingerprint: "f".into(),
            source: "a.crt".into(),
            error: None,
        }
    }

    #[test]
    fn an_end_is_said_30_7_and_1_days_before_and_when_it_has_come_each_once() {
        let mut ends = Ends::default();
        let mut said = Vec::new();
        for days in (-3..40).rev() {
            for _ in 0..3 {
                let one = certificate(days);
                said.extend(ends.look(&[one]).into_iter().map(|(c, _)| c.days_left));
            }
        }
        assert_eq!(said, [29, 6, 0, -1]);
        // At a start, once, whatever was missed.
        let mut ends = Ends::default();
        let one = [certificate(-9)];
        assert_eq!(ends.look(&one)[0].1, "has expired");
        assert!(ends.look(&one).is_empty());
        // Replaced, and back again.
        assert!(ends.look(&[]).is_empty());
        assert_eq!(ends.look(&one).len(), 1);
    }
}
