//! Group commit: commands that wait while an entry is under way go into the next entry together,
//! because each entry costs one sync of the disk.
//!
//! Must never change the order of commands, nor answer one before its entry is applied.

use std::sync::Arc;

use caravan_core::error::Refusal;
use caravan_core::limits;
use openraft::error::ClientWriteError;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::propose::stopped;
use super::types::{Forwarded, Group, Proposal, Raft};

/// A command and whom to tell.
pub(super) struct Waiting {
    pub proposal: Proposal,
    pub answer: oneshot::Sender<Forwarded>,
}

/// Runs until every sender is gone.
pub(super) async fn run(raft: Raft, mut queue: mpsc::Receiver<Waiting>) {
    let under_way = Arc::new(Semaphore::new(limits::GROUPS));
    while let Some(first) = queue.recv().await {
        let Ok(permit) = under_way.clone().acquire_owned().await else { return };
        let mut bytes = size(&first);
        let mut group = vec![first];
        while group.len() < limits::GROUP_COMMANDS && bytes < limits::GROUP_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes += size(&next);
            group.push(next);
        }
        let (proposals, tell): (Vec<Proposal>, Vec<_>) =
            group.into_iter().map(|one| (one.proposal, one.answer)).unzip();
        // Handed over here, one group after the other; waited for in a task of its own.
        match raft.client_write_ff(Group(proposals)).await {
            Ok(written) => {
                tokio::spawn(async move {
                    let result = written.await;
                    drop(permit);
                    match result {
                        Ok(Ok(done)) => answer(tell, done.data, done.log_id.index),
                        Ok(Err(error)) => refuse(tell, &refused(error)),
                        Err(_) => refuse(tell, &Forwarded::Refused(stopped("shut down"))),
                    }
                });
            }
            Err(error) => refuse(tell, &Forwarded::Refused(stopped(error))),
        }
    }
}

/// An estimate: most of a large command is its bodies.
fn size(waiting: &Waiting) -> usize {
    postcard::experimental::serialized_size(&waiting.proposal).unwrap_or_default()
}

fn answer(tell: Vec<oneshot::Sender<Forwarded>>, answers: Vec<super::types::Answer>, index: u64) {
    for (one, answer) in tell.into_iter().zip(answers) {
        // Who has gone does not hear it; a repeat of the command will.
        let _ = one.send(Forwarded::Done { answer, index });
    }
}

fn refuse(tell: Vec<oneshot::Sender<Forwarded>>, why: &Forwarded) {
    for one in tell {
        let _ = one.send(why.clone());
    }
}

type WriteError = ClientWriteError<u64, openraft::BasicNode>;

fn refused(error: WriteError) -> Forwarded {
    match error {
        ClientWriteError::ForwardToLeader(_) => Forwarded::NotLeader,
        error => {
            let why = format!("the cluster's members are changing: {error}; try again");
            Forwarded::Refused(Refusal::cluster("membership_changing", limits::RETRY_AFTER_MS, why))
        }
    }
}
