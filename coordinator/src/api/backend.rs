//! What the HTTP door needs of the rest of the coordinator, as traits, so that its tests run on a fake.
//!
//! Must never decide anything: every method hands on to one part.

use std::collections::BTreeMap;
use std::sync::Arc;

use caravan_core::cluster::{ClusterState, Outcome};
use caravan_core::error::Refusal;
use caravan_core::ids::{PipelineId, WorkerId};
use caravan_core::model::ModelSpec;
use caravan_core::plan::Plan;
use caravan_core::request::{GenerateEvent, RequestRecord};
use caravan_core::store::{StoreCommand, StoreOutcome};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use super::ApiParts;
use crate::consensus::{ApiKeys, ConsensusStatus};
use crate::driver::PipelineStats;
use crate::fleet::WorkerRuntime;
use crate::text::{ChatMessage, TextModel};

/// The coordinator behind the door.
pub trait Backend: Send + Sync + 'static {
    fn default_model(&self) -> Option<String>;
    fn state(&self) -> watch::Receiver<Arc<ClusterState>>;
    fn status(&self) -> watch::Receiver<ConsensusStatus>;
    fn linearize(&self) -> BoxFuture<'_, Result<(), Refusal>>;
    fn api_keys(&self) -> ApiKeys;
    fn store(&self, command: StoreCommand) -> BoxFuture<'_, Result<StoreOutcome, Refusal>>;
    /// Tokenizer and template of a model.
    fn text(&self, spec: Arc<ModelSpec>) -> BoxFuture<'_, Result<Arc<dyn Text>, Refusal>>;
    /// `Token`s, then one `Finished` or `Refused`. Dropping the stream cancels.
    fn generate(&self, record: RequestRecord) -> BoxStream<'static, GenerateEvent>;
    fn stats(&self) -> Vec<(PipelineId, PipelineStats)>;
    /// Empty unless this coordinator leads.
    fn runtime(&self) -> BTreeMap<WorkerId, WorkerRuntime>;
    fn drain(&self, worker: WorkerId) -> BoxFuture<'_, Result<Outcome, Refusal>>;
    fn rebalance(&self, dry_run: bool) -> BoxFuture<'_, Result<Plan, Refusal>>;
}

/// Text of one model.
pub trait Text: Send + Sync + 'static {
    /// Tokens of a conversation, through the model's template. Refuses more than `most`.
    fn chat_tokens(&self, messages: &[ChatMessage], most: usize) -> Result<Vec<u32>, Refusal>;
    /// Tokens of a raw prompt, control tokens written out in it included; `None` if more than `most`.
    fn raw_tokens(&self, text: &str, most: usize) -> Option<Vec<u32>>;
    fn bos(&self) -> Option<u32>;
    fn stop_tokens(&self) -> Vec<u32>;
    fn token_bytes(&self, token: u32) -> &[u8];
}

impl Text for TextModel {
    fn chat_tokens(&self, messages: &[ChatMessage], most: usize) -> Result<Vec<u32>, Refusal> {
        self.prompt_tokens_within(messages, most)
    }

    fn raw_tokens(&self, text: &str, most: usize) -> Option<Vec<u32>> {
        self.encode_within(text, true, most)
    }

    fn bos(&self) -> Option<u32> {
        TextModel::bos(self)
    }

    fn stop_tokens(&self) -> Vec<u32> {
        TextModel::stop_tokens(self).to_vec()
    }

    fn token_bytes(&self, token: u32) -> &[u8] {
        TextModel::token_bytes(self, token)
    }
}

impl Backend for ApiParts {
    fn default_model(&self) -> Option<String> {
        self.default_model.clone()
    }

    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.consensus.state()
    }

    fn status(&self) -> watch::Receiver<ConsensusStatus> {
        self.consensus.status()
    }

    fn linearize(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        self.consensus.linearize().boxed()
    }

    fn api_keys(&self) -> ApiKeys {
        self.consensus.api_keys().borrow().clone()
    }

    fn store(&self, command: StoreCommand) -> BoxFuture<'_, Result<StoreOutcome, Refusal>> {
        self.consensus.store(command).boxed()
    }

    fn text(&self, spec: Arc<ModelSpec>) -> BoxFuture<'_, Result<Arc<dyn Text>, Refusal>> {
        let state = self.consensus.state().borrow().clone();
        let holders = state.coordinators.values().filter(|one| one.holds.contains(&spec.digest));
        let sources: Vec<String> = holders.map(|one| one.grpc.clone()).collect();
        let read = async move { self.models.text_model(&spec, &sources).await };
        read.map(|text| text.map(|text| text as Arc<dyn Text>)).boxed()
    }

    fn generate(&self, record: RequestRecord) -> BoxStream<'static, GenerateEvent> {
        let tokens = self.generator.generate(record);
        stream::unfold(tokens, |mut tokens| async move { tokens.next().await.map(|event| (event, tokens)) })
            .boxed()
    }

    fn stats(&self) -> Vec<(PipelineId, PipelineStats)> {
        self.drivers.stats()
    }

    fn runtime(&self) -> BTreeMap<WorkerId, WorkerRuntime> {
        self.fleet.runtime()
    }

    fn drain(&self, worker: WorkerId) -> BoxFuture<'_, Result<Outcome, Refusal>> {
        self.fleet.drain(worker).boxed()
    }

    fn rebalance(&self, dry_run: bool) -> BoxFuture<'_, Result<Plan, Refusal>> {
        self.fleet.rebalance(dry_run).boxed()
    }
}
