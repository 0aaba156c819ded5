//! What drivers need of the cluster: the applied state, and a way to propose. Tests put a fake here.
//!
//! Must never grow beyond what a driver asks of consensus.

use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Command, Outcome};
use caravan_core::error::Refusal;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::consensus::Consensus;

pub(crate) trait Cluster: Send + Sync + 'static {
    /// The state applied here; changes are watched.
    fn state(&self) -> watch::Receiver<Arc<ClusterState>>;

    /// Commits a command. A refusal with a safe retry: it may or may not have been committed.
    fn propose(&self, command: Command) -> BoxFuture<'static, Result<Outcome, Refusal>>;
}

impl Cluster for Consensus {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        Consensus::state(self)
    }

    fn propose(&self, command: Command) -> BoxFuture<'static, Result<Outcome, Refusal>> {
        let consensus = self.clone();
        Box::pin(async move { Consensus::propose(&consensus, command).await })
    }
}
