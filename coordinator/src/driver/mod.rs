//! Drivers: the step loops of the pipelines that the plan gives to this coordinator.

use caravan_core::error::Refusal;
use caravan_core::ids::{CoordinatorId, PipelineId};
use caravan_core::request::{GenerateEvent, RequestRecord};
use tokio::sync::mpsc;

use crate::consensus::Consensus;

#[derive(Clone, Debug)]
pub struct DriverConfig {
    pub me: CoordinatorId,
    pub prefill_chunk_tokens: u32,
    pub step_rows: u32,
    pub waiting_sequences: usize,
}

/// What a driver measured of late; for status, metrics and plan pages.
#[derive(Clone, Debug, Default)]
pub struct PipelineStats {
    pub running: usize,
    pub waiting: usize,
    pub free_pages: u32,
    pub pages: u32,
    pub steps_in_flight: usize,
    pub tokens_total: u64,
    pub prefill_tokens_total: u64,
    /// Tokens emitted a second over the last 10 seconds of work.
    pub tokens_per_s: f64,
}

#[derive(Clone)]
pub struct Drivers {}

impl Drivers {
    /// Watches the plan and runs a driver for each pipeline whose driver is `me`.
    pub fn start(_config: DriverConfig, _consensus: Consensus) -> Drivers {
        todo!()
    }

    /// Submits to a local driver of the record's model. Events come in order until Finished,
    /// Refused or Interrupted; dropping the receiver cancels.
    pub async fn submit(&self, _record: RequestRecord) -> Result<mpsc::Receiver<GenerateEvent>, Refusal> {
        todo!()
    }

    /// Stats of the pipelines driven here.
    pub fn stats(&self) -> Vec<(PipelineId, PipelineStats)> {
        todo!()
    }
}
