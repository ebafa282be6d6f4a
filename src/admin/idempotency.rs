//! `Idempotency-Key`: a client that lost an answer asks again with the same key and gets the first answer, or joins
//! the swap while it runs. Nothing happens twice. The last [`KEYS`] keys are known; their answers take at most
//! [`BYTES`], beyond which the oldest lose their plan and findings (never their outcome).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::problem::{Problem, Refusal};
use crate::supervisor::{SubmitError, SwapRecord};

/// How many keys are known.
const KEYS: usize = 1024;
/// How much memory their answers may take, as JSON text.
const BYTES: usize = 16 * 1024 * 1024;
/// Longest key.
const LENGTH: usize = 255;

/// What makes two requests the same.
pub(crate) type Fingerprint = [u8; 32];

/// The known keys.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Arc<str>, Entry>,
    /// Oldest first.
    order: VecDeque<Arc<str>>,
    /// Keys whose answer is held in full, oldest first.
    full: VecDeque<Arc<str>>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    fingerprint: Fingerprint,
    swap: u64,
    answer: Option<Arc<SwapRecord>>,
    bytes: usize,
}

/// What a key stands for.
#[derive(Debug)]
pub(crate) enum Claim {
    /// First time: this swap was queued for it.
    New(u64),
    /// A retry: the swap of the first time, and its answer once it has ended.
    Known(u64, Option<Arc<SwapRecord>>),
}

impl Keys {
    /// Finds the swap of a key, or queues one under the lock, so that two retries at once are one swap.
    ///
    /// # Errors
    /// 422 when the key was used for another request; else why the swap was not queued (then the key stays unused).
    pub(crate) fn claim(
        &self,
        key: &Arc<str>,
        fingerprint: Fingerprint,
        submit: impl FnOnce() -> Result<u64, SubmitError>,
    ) -> Result<Claim, Refusal> {
        let mut table = self.table.lock();
        if let Some(entry) = table.entries.get(key) {
            if entry.fingerprint != fingerprint {
                let detail =
                    "this Idempotency-Key came with another method, path, query or body before";
                return Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "idempotency-key",
                    detail,
                ));
            }
            return Ok(Claim::Known(entry.swap, entry.answer.clone()));
        }
        let swap = submit()?;
        table.entries.insert(
            key.clone(),
            Entry {
                fingerprint,
                swap,
                answer: None,
                bytes: 0,
            },
        );
        table.order.push_back(key.clone());
        if table.order.len() > KEYS
            && let Some(oldest) = table.order.pop_front()
        {
            table.remove(&oldest);
        }
        Ok(Claim::New(swap))
    }

    /// Remembers how the swap of a key ended. One that never had its turn is forgotten instead: a retry is then a new
    /// try, which is what the client wants.
    pub(crate) fn finish(&self, key: &Arc<str>, record: SwapRecord) {
        let bytes = serde_json::to_vec(&record).map_or(0, |text| text.len());
        let mut table = self.table.lock();
        let Some(entry) = table
            .entries
            .get_mut(key)
            .filter(|entry| entry.swap == record.swap)
        else {
            return;
        };
        if matches!(record.problem.as_deref(), Some("busy" | "stopping")) {
            table.order.retain(|known| known != key);
            table.remove(key);
            return;
        }
        entry.bytes = bytes;
        entry.answer = Some(Arc::new(record));
        table.bytes += bytes;
        table.full.push_back(key.clone());
        while table.bytes > BYTES {
            let Some(oldest) = table.full.pop_front() else {
                break;
            };
            table.slim(&oldest);
        }
    }
}

impl Table {
    fn remove(&mut self, key: &Arc<str>) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.full.retain(|known| known != key);
        }
    }

    fn slim(&mut self, key: &Arc<str>) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        self.bytes -= std::mem::take(&mut entry.bytes);
        if let Some(answer) = &mut entry.answer {
            let mut small = SwapRecord::clone(answer);
            small.plan = None;
            small.config = None;
            small.errors.truncate(10);
            small.warnings.truncate(10);
            *answer = Arc::new(small);
        }
    }
}

/// The key of a request, if it has one.
///
/// # Errors
/// 400 for an empty, overlong, repeated or non-ASCII one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<Arc<str>>, Refusal> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if !text.is_empty() && text.len() <= LENGTH && values.next().is_none() => {
            Ok(Some(text.into()))
        }
        _ => Err(Problem::bad_header(format!(
            "Idempotency-Key is one value of 1 to {LENGTH} visible ASCII characters"
        ))),
    }
}

/// Digest of all that makes a request what it is. Each part is led by its length, so no two lists look alike.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> Fingerprint {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::fake;
    use super::*;

    fn claim(keys: &Keys, key: &str, body: &[u8], swap: u64) -> Result<Claim, Refusal> {
        keys.claim(&key.into(), fingerprint(&[body]), || Ok(swap))
    }

    #[test]
    fn a_key_is_one_swap() {
        let keys = Keys::default();
        assert!(matches!(claim(&keys, "a", b"1", 7).unwrap(), Claim::New(7)));
        assert!(matches!(
            claim(&keys, "a", b"1", 8).unwrap(),
            Claim::Known(7, None)
        ));
        assert_eq!(claim(&keys, "a", b"2", 8).unwrap_err().status, 422);
        keys.finish(&"a".into(), fake::record(7));
        assert!(matches!(
            claim(&keys, "a", b"1", 8).unwrap(),
            Claim::Known(7, Some(_))
        ));
    }

    #[test]
    fn the_last_1024_are_known() {
        let keys = Keys::default();
        for n in 0..=KEYS as u64 {
            claim(&keys, &n.to_string(), b"", n).unwrap();
            keys.finish(&n.to_string().into(), fake::record(n));
        }
        assert!(matches!(
            claim(&keys, "1", b"", 9).unwrap(),
            Claim::Known(1, Some(_))
        ));
        assert!(matches!(
            claim(&keys, "0", b"", 9_000).unwrap(),
            Claim::New(9_000)
        ));
        let table = keys.table.lock();
        assert_eq!((table.entries.len(), table.order.len()), (KEYS, KEYS));
        assert_eq!(
            table.bytes,
            table
                .entries
                .values()
                .map(|entry| entry.bytes)
                .sum::<usize>()
        );
    }

    #[test]
    fn answers_take_bounded_memory_and_keep_their_outcome() {
        let keys = Keys::default();
        for n in 0..20 {
            claim(&keys, &n.to_string(), b"", n).unwrap();
            let mut record = fake::record(n);
            record.config = Some(serde_json::Value::String("x".repeat(BYTES / 10)));
            keys.finish(&n.to_string().into(), record);
        }
        assert!(keys.table.lock().bytes <= BYTES);
        let Claim::Known(0, Some(answer)) = claim(&keys, "0", b"", 1).unwrap() else {
            panic!("known")
        };
        assert!(answer.config.is_none() && answer.outcome.is_some());
    }

    #[test]
    fn one_that_never_had_its_turn_may_be_tried_again() {
        let keys = Keys::default();
        claim(&keys, "a", b"", 1).unwrap();
        let mut record = fake::record(1);
        record.problem = Some("busy".into());
        keys.finish(&"a".into(), record);
        assert!(matches!(claim(&keys, "a", b"", 2).unwrap(), Claim::New(2)));
    }

    #[test]
    fn parts_of_a_fingerprint_do_not_run_together() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
