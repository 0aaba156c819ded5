//! On the leader: proposes to remove what is past its time, with its own clock as the stamp.
//!
//! Must never remove anything itself, nor fill the log with entries that remove nothing.

use std::time::Duration;

use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::store::{StoreCommand, StoreOutcome, read};

use crate::consensus::{Consensus, Role};
use crate::driver::now_ms;

/// Runs until it is dropped.
pub async fn run(consensus: Consensus) {
    let mut ticks = tokio::time::interval(Duration::from_millis(limits::EXPIRE_EVERY_MS));
    loop {
        ticks.tick().await;
        if consensus.status().borrow().role != Role::Leader {
            continue;
        }
        match expire(&consensus).await {
            Ok(0) => {}
            Ok(objects) => tracing::info!(objects, "what was past its time is removed"),
            // The next leader, or the next round, does it.
            Err(error) => tracing::debug!(%error, "nothing could be removed now"),
        }
    }
}

async fn expire(consensus: &Consensus) -> Result<u64, Refusal> {
    let mut all = 0;
    loop {
        let now_ms = now_ms();
        if !consensus.look(move |view| read::is_due(view, now_ms)).await? {
            return Ok(all);
        }
        match consensus.store(StoreCommand::Expire { now_ms }).await? {
            StoreOutcome::Removed { objects } if objects > 0 => all += objects,
            // What is due can't go yet: a conversation in which an answer is under way.
            _ => return Ok(all),
        }
    }
}
