//! Passwords against hashes, on threads of their own: one takes tens of milliseconds and megabytes, by design. What waits
//! is bounded, so that a flood of wrong passwords costs its senders a 503 and nobody else anything but a few threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::http::{HashKind, HashedPassword};

/// What waits at most: some seconds of work.
const QUEUE: usize = 64;
/// More would take what requests need.
const MOST_THREADS: usize = 4;

/// The threads. They end when the last generation that has users does.
#[derive(Debug)]
pub(super) struct Hasher {
    jobs: SyncSender<Job>,
}

#[derive(Debug)]
struct Job {
    hash: HashedPassword,
    password: Vec<u8>,
    reply: oneshot::Sender<bool>,
}

/// Too many wait.
#[derive(Debug)]
pub(super) struct Busy;

impl Hasher {
    pub(super) fn start() -> Hasher {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Hasher::with((cores / 2).clamp(1, MOST_THREADS))
    }

    fn with(threads: usize) -> Hasher {
        let (jobs, inbox) = sync_channel(QUEUE);
        let inbox = Arc::new(Mutex::new(inbox));
        for number in 0..threads {
            let inbox = inbox.clone();
            let thread = std::thread::Builder::new().name(format!("password-{number}"));
            // It ends with the channel.
            if let Err(error) = thread.spawn(move || work(&inbox)) {
                tracing::error!(%error, "no thread to check passwords with");
            }
        }
        Hasher { jobs }
    }

    /// Whether `password` is the one of `hash`, once that is known. Dropping the answer saves the work if it has not begun.
    pub(super) fn verify(
        &self,
        hash: HashedPassword,
        password: Vec<u8>,
    ) -> Result<oneshot::Receiver<bool>, Busy> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            hash,
            password,
            reply,
        };
        self.jobs.try_send(job).map_err(|_| Busy)?;
        Ok(answer)
    }
}

fn work(inbox: &Mutex<Receiver<Job>>) {
    loop {
        // One waits for a job, the others for their turn.
        let next = inbox.lock().recv();
        let Ok(job) = next else { return };
        if job.reply.is_closed() {
            continue;
        }
        let verified = catch_unwind(AssertUnwindSafe(|| verify(&job.hash, &job.password)));
        // Nobody waits any more: fine.
        let _ = job.reply.send(verified.unwrap_or(false));
    }
}

fn verify(hash: &HashedPassword, password: &[u8]) -> bool {
    match hash.kind {
        HashKind::Argon2 => PasswordHash::new(hash.expose()).is_ok_and(|parsed| {
            let argon2 = argon2::Argon2::default();
            argon2.verify_password(password, &parsed).is_ok()
        }),
        // Beyond 72 bytes it does not look, as in every htpasswd file.
        HashKind::Bcrypt => bcrypt::verify(password, hash.expose()).unwrap_or(false),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use argon2::PasswordHasher;

    use super::*;

    /// A quick hash of `password`.
    fn argon2(password: &str) -> HashedPassword {
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        let context =
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let hash = context.hash_password_with_salt(password.as_bytes(), b"saltsalt");
        HashedPassword::parse(&hash.unwrap().to_string()).unwrap()
    }

    #[tokio::test]
    async fn both_kinds_know_their_password() {
        let hasher = Hasher::with(2);
        let bcrypt = bcrypt::hash("secret", 4).unwrap();
        for hash in [argon2("secret"), HashedPassword::parse(&bcrypt).unwrap()] {
            for (password, right) in [("secret", true), ("Secret", false), ("", false)] {
                let answer = hasher.verify(hash.clone(), password.into()).unwrap();
                assert_eq!(answer.await.unwrap(), right, "{password} {hash:?}");
            }
        }
    }

    #[test]
    fn what_is_over_the_queue_is_refused() {
        let hasher = Hasher::with(0);
        let hash = argon2("x");
        // Without threads the channel is closed.
        assert!(hasher.verify(hash.clone(), vec![]).is_err());
        let (jobs, _inbox) = sync_channel(1);
        let hasher = Hasher { jobs };
        let _first = hasher.verify(hash.clone(), vec![]).unwrap();
        assert!(hasher.verify(hash, vec![]).is_err());
    }
}
