//! What was deleted leaves the log too: a while after a deletion the log is compacted beyond it,
//! though compaction is not due yet.
//!
//! Must never compact what the applied state's file does not hold durably: the library takes a
//! snapshot, which syncs that file, before it purges.

use std::time::Duration;

use caravan_core::limits;
use tokio::sync::watch;

use super::types::Raft;

/// Runs until consensus stops.
pub(super) async fn run(raft: Raft, mut deleted: watch::Receiver<u64>, scrub_ms: u64) {
    loop {
        let upto = *deleted.borrow_and_update();
        let purged = raft.metrics().borrow().purged.map_or(0, |id| id.index);
        if upto > purged {
            tokio::time::sleep(Duration::from_millis(scrub_ms)).await;
            let newest = *deleted.borrow_and_update();
            if purge(&raft, newest).await.is_none() {
                return;
            }
        } else if deleted.changed().await.is_err() {
            return;
        }
    }
}

/// `None` when consensus has stopped.
async fn purge(raft: &Raft, upto: u64) -> Option<()> {
    raft.trigger().snapshot().await.ok()?;
    let mut metrics = raft.metrics();
    let limit = Duration::from_millis(limits::PROPOSE_MS);
    let kept = metrics.wait_for(|now| now.snapshot.is_some_and(|id| id.index >= upto));
    // What was seen is let go before anything else is waited for.
    let seen = tokio::time::timeout(limit, kept).await.map(|seen| seen.is_ok());
    match seen {
        Ok(true) => raft.trigger().purge_log(upto).await.ok(),
        Ok(false) => None,
        // The disk is slow; the next round tries again.
        Err(_) => Some(()),
    }
}
