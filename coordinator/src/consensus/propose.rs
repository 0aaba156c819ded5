//! Commands and reads that any coordinator may be asked for: finds the leader, wherever it is.
//!
//! Must never wait past `PROPOSE_MS`, nor say "not committed" of a command that may be.

use std::time::Duration;

use caravan_core::cluster::{Command, Outcome};
use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::store::{StoreCommand, StoreOutcome};
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::groups::Waiting;
use super::types::{Answer, Forwarded, NodeId, Proposal};
use super::{Consensus, Inner, Role};

/// No answer in time. The words matter: the command may be committed later.
pub(super) fn no_quorum() -> Refusal {
    Refusal::cluster(
        "no_quorum",
        limits::RETRY_AFTER_MS,
        format!(
            "no majority of the coordinators confirmed the command within {} ms. It may or may not \
             have been committed; commands are idempotent, so sending it again is safe. Check that \
             more than half of the coordinators run and reach each other",
            limits::PROPOSE_MS
        ),
    )
}

fn no_quorum_read() -> Refusal {
    Refusal::cluster(
        "no_quorum",
        limits::RETRY_AFTER_MS,
        format!(
            "no majority of the coordinators confirmed within {} ms that this read is current; \
             nothing was changed, a retry is safe. Check that more than half of the coordinators run \
             and reach each other",
            limits::PROPOSE_MS
        ),
    )
}

pub(super) fn stopped(error: impl std::fmt::Display) -> Refusal {
    Refusal::operator(
        "consensus_stopped",
        format!(
            "this coordinator's consensus has stopped: {error}. Mend the cause (often a full or \
             broken disk) and start it again; the other coordinators go on meanwhile"
        ),
    )
}

impl Consensus {
    /// Commits a command, through the leader wherever it is. A `Refusal` with a safe retry means
    /// that it may or may not have been committed (no quorum, deadline).
    pub async fn propose(&self, command: Command) -> Result<Outcome, Refusal> {
        match self.commit(Proposal::Cluster(command)).await? {
            Answer::Cluster(outcome) => Ok(outcome),
            Answer::Store(_) => Err(stopped("an answer of another kind")),
        }
    }

    /// As `propose`, for a command about the store. When this returns, the rows here show it.
    pub async fn store(&self, command: StoreCommand) -> Result<StoreOutcome, Refusal> {
        match self.commit(Proposal::Store(command)).await? {
            Answer::Store(outcome) => Ok(outcome),
            Answer::Cluster(_) => Err(stopped("an answer of another kind")),
        }
    }

    async fn commit(&self, proposal: Proposal) -> Result<Answer, Refusal> {
        let bytes = postcard::experimental::serialized_size(&proposal).unwrap_or(usize::MAX);
        if bytes > limits::COMMAND_BYTES {
            return Err(Refusal::operator(
                "command_too_large",
                format!(
                    "the command has {bytes} bytes, more than the {} that fit into the cluster's \
                     log; it was not sent, and a retry won't help",
                    limits::COMMAND_BYTES
                ),
            ));
        }
        let limit = Duration::from_millis(limits::PROPOSE_MS);
        let deadline = Instant::now() + limit;
        let attempt = self.propose_until_done(proposal);
        let (answer, index) =
            tokio::time::timeout_at(deadline, attempt).await.unwrap_or_else(|_| Err(no_quorum()))?;
        // Committed. That the caller finds it in `state()` here is a courtesy worth no failure.
        let _ = tokio::time::timeout_at(deadline, self.wait_applied(index)).await;
        Ok(answer)
    }

    async fn propose_until_done(&self, proposal: Proposal) -> Result<(Answer, u64), Refusal> {
        let inner = &self.inner;
        let Ok(_permit) = inner.proposals.acquire().await else { return Err(stopped("shut down")) };
        loop {
            inner.check_running()?;
            let Some(leader) = self.leader() else {
                self.wait_status().await;
                continue;
            };
            let answer = if leader == inner.peers.me {
                inner.append_here(proposal.clone()).await
            } else {
                self.forward(leader, &proposal).await
            };
            match answer {
                Forwarded::Done { answer, index } => return Ok((answer, index)),
                Forwarded::Refused(refusal) => return Err(refusal),
                // The leader changes just now, or is gone and nobody has noticed yet.
                Forwarded::NotLeader => self.wait_status().await,
            }
        }
    }

    /// Hands the command to the leader; gives up on it as soon as another one leads.
    async fn forward(&self, leader: NodeId, proposal: &Proposal) -> Forwarded {
        let stored = self.inner.stored_address(leader);
        let mut status = self.status.clone();
        tokio::select! {
            answer = self.inner.peers.propose(leader, &stored, proposal) => {
                answer.unwrap_or_else(|error| {
                    tracing::debug!(leader, %error, "the leader could not be asked");
                    Forwarded::NotLeader
                })
            }
            _ = status.wait_for(|now| now.leader.is_some_and(|id| id.0 != leader)) => {
                Forwarded::NotLeader
            }
        }
    }

    /// After this returns, `state()` holds everything acknowledged before the call.
    pub async fn linearize(&self) -> Result<(), Refusal> {
        let limit = Duration::from_millis(limits::PROPOSE_MS);
        tokio::time::timeout(limit, self.linearize_until_done())
            .await
            .unwrap_or_else(|_| Err(no_quorum_read()))
    }

    async fn linearize_until_done(&self) -> Result<(), Refusal> {
        let inner = &self.inner;
        loop {
            inner.check_running()?;
            let index = match self.leader() {
                None => None,
                Some(leader) if leader == inner.peers.me => inner.read_index_here().await?,
                Some(leader) => {
                    let stored = inner.stored_address(leader);
                    // An empty log has no index to wait for, and cannot be: a leader wrote to it.
                    inner.peers.read_index(leader, &stored).await.unwrap_or(None)
                }
            };
            match index {
                Some(index) => {
                    self.wait_applied(index).await;
                    return Ok(());
                }
                None => self.wait_status().await,
            }
        }
    }

    fn leader(&self) -> Option<NodeId> {
        self.status.borrow().leader.map(|id| id.0)
    }

    /// Waits for news of the leader; a short time at most, since a leader can be unreachable
    /// without any news here.
    async fn wait_status(&self) {
        let mut status = self.status.clone();
        status.mark_unchanged();
        let pause = Duration::from_millis(limits::RAFT_RETRY_MS);
        let _ = tokio::time::timeout(pause, status.changed()).await;
    }

    async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.clone();
        // An error means that consensus stopped; the caller's next step finds out.
        let _ = applied.wait_for(|now| now.is_some_and(|at| at >= index)).await;
    }
}

impl Inner {
    /// Appends and commits here, if this coordinator leads.
    pub async fn append_here(&self, proposal: Proposal) -> Forwarded {
        // A leader that has lost its majority could only fill its log with what nobody confirms.
        if self.status.borrow().role != Role::Leader {
            return Forwarded::NotLeader;
        }
        let (answer, committed) = oneshot::channel();
        if self.groups.send(Waiting { proposal, answer }).await.is_err() {
            return Forwarded::Refused(stopped("shut down"));
        }
        committed.await.unwrap_or_else(|_| Forwarded::Refused(stopped("shut down")))
    }

    /// The index to wait for; `None` if this is not the leader, or its majority did not answer.
    async fn read_index_here(&self) -> Result<Option<u64>, Refusal> {
        match self.raft.get_read_log_id().await {
            Ok((read, _applied)) => Ok(read.map(|id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))
            | Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => Ok(None),
            Err(RaftError::Fatal(error)) => Err(stopped(error)),
        }
    }

    pub fn check_running(&self) -> Result<(), Refusal> {
        match &self.raft.metrics().borrow().running_state {
            Ok(()) => Ok(()),
            Err(error) => Err(stopped(error)),
        }
    }

    /// The address of a member in the replicated membership; empty if it is none.
    pub fn stored_address(&self, id: NodeId) -> String {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let node = metrics.membership_config.membership().get_node(&id);
        node.map_or_else(String::new, |node| node.addr.clone())
    }
}
