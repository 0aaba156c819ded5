//! Adding and removing coordinators, one at a time.
//!
//! Must never remove one whose going leaves no majority that is there.

use std::collections::BTreeSet;
use std::time::Duration;

use caravan_core::error::Refusal;
use caravan_core::ids::CoordinatorId;
use caravan_core::limits;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};

use super::types::{NodeId, RaftMetrics};
use super::{Consensus, Role};

type ChangeError = RaftError<NodeId, ClientWriteError<NodeId, BasicNode>>;

impl Consensus {
    /// Adds a coordinator as learner, then, when it has caught up, as voter. On the leader only.
    /// Done again it changes nothing.
    pub async fn add_member(&self, id: CoordinatorId, grpc: String) -> Result<(), Refusal> {
        let metrics = self.leader_metrics()?;
        if metrics.membership_config.voter_ids().any(|voter| voter == id.0) {
            return Ok(());
        }
        let raft = &self.inner.raft;
        let change = async {
            raft.add_learner(id.0, BasicNode::new(grpc), true).await.map_err(refusal)?;
            let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id.0]));
            raft.change_membership(voters, true).await.map_err(refusal)?;
            Ok(())
        };
        within_limit(change, "it is kept as a learner, without a vote, and still catches up").await
    }

    /// Removes a coordinator from the voters and the members. On the leader only. Done again it
    /// changes nothing.
    pub async fn remove_member(&self, id: CoordinatorId) -> Result<(), Refusal> {
        let metrics = self.leader_metrics()?;
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().collect();
        let change = if voters.contains(&id.0) {
            self.check_majority_without(&voters, id.0)?;
            ChangeMembers::RemoveVoters(BTreeSet::from([id.0]))
        } else if super::status::member_ids(&metrics).any(|member| member == id.0) {
            ChangeMembers::RemoveNodes(BTreeSet::from([id.0]))
        } else {
            return Ok(());
        };
        let raft = &self.inner.raft;
        let change = async {
            raft.change_membership(change, false).await.map_err(refusal)?;
            Ok(())
        };
        within_limit(change, "the removal may still be under way").await
    }

    fn leader_metrics(&self) -> Result<RaftMetrics, Refusal> {
        self.inner.check_running()?;
        let status = self.status.borrow();
        if status.role == Role::Leader {
            return Ok(self.inner.raft.metrics().borrow().clone());
        }
        let who = match status.leader {
            Some(leader) => format!("coordinator {leader} leads: ask it"),
            None => "no coordinator leads just now: try again".to_owned(),
        };
        Err(Refusal::cluster("not_leader", limits::RETRY_AFTER_MS, who))
    }

    /// A removal that can't be committed can leave the cluster without any leader.
    fn check_majority_without(&self, voters: &BTreeSet<NodeId>, gone: NodeId) -> Result<(), Refusal> {
        let within = Duration::from_millis(limits::RAFT_DOWN_MS);
        let left: Vec<NodeId> = voters.iter().copied().filter(|id| *id != gone).collect();
        let there = left.iter().filter(|id| self.inner.peers.reachable(**id, within)).count();
        if 2 * there > left.len() {
            return Ok(());
        }
        Err(Refusal::operator(
            "no_majority_left",
            format!(
                "without coordinator {gone} the cluster has {} voters, of which {there} can be \
                 reached: no majority. Start or add others first; nothing was changed",
                left.len()
            ),
        ))
    }
}

async fn within_limit(
    change: impl Future<Output = Result<(), Refusal>>,
    meanwhile: &str,
) -> Result<(), Refusal> {
    let limit = Duration::from_millis(limits::MEMBERSHIP_MS);
    tokio::time::timeout(limit, change).await.unwrap_or_else(|_| {
        let why = format!(
            "the change of members did not finish within {} ms: {meanwhile}. Check that the \
             coordinator runs and is reachable at its address; a retry is safe",
            limits::MEMBERSHIP_MS
        );
        Err(Refusal::cluster("membership_timeout", limits::RETRY_AFTER_MS, why))
    })
}

fn refusal(error: ChangeError) -> Refusal {
    let retry = limits::RETRY_AFTER_MS;
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
            let why = "this coordinator has just lost the lead; a retry at the new leader is safe";
            Refusal::cluster("not_leader", retry, why)
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => {
                let why = "another change of members is under way; a retry is safe";
                Refusal::cluster("membership_changing", retry, why)
            }
            error => Refusal::operator("bad_membership", format!("{error}; nothing was changed")),
        },
        RaftError::Fatal(error) => {
            let why = format!("this coordinator's consensus has stopped: {error}; start it again");
            Refusal::operator("consensus_stopped", why)
        }
    }
}
