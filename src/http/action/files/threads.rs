//! The way to a thread that may block: the worker's own pool, with a bound on what waits for it.

use std::io;

use tokio::sync::Semaphore;

/// Calls of the whole process that are under way or handed to a pool. What waits for a place here can still be given up
/// by its request; what a pool has got can't.
const CALLS: usize = 64;

static PLACES: Semaphore = Semaphore::const_new(CALLS);

/// Runs `work` where it may block.
///
/// # Errors
/// If it panicked, or the runtime ends.
pub(super) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let place = PLACES.acquire().await.map_err(io::Error::other)?;
    tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    })
    .await
    .map_err(io::Error::other)
}
