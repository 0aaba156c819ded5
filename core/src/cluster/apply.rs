//! One command in, one outcome out: the same on every coordinator.
//!
//! Must never hold a command's rules (each has its own file), and never panic: the log is replayed
//! on every start.

use super::*;

impl ClusterState {
    /// Applies a command of the log. Deterministic: equal states and commands give equal states and
    /// outcomes. A command that is refused or repeated changes nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        match command {
            Command::RegisterCoordinator { id, coordinator } => {
                register_coordinator::apply(self, *id, coordinator)
            }
            Command::JoinWorker { id, incarnation, profile, now_ms } => {
                join_worker::apply(self, id, *incarnation, profile, *now_ms)
            }
            Command::MeasureWorker { id, incarnation, model, time, links } => {
                measure_worker::apply(self, id, *incarnation, model, (time, links))
            }
            Command::ExpireWorker { id, incarnation, now_ms } => {
                expire_worker::apply(self, id, *incarnation, *now_ms)
            }
            Command::DrainWorker { id } => drain_worker::apply(self, id),
            Command::AddModel { spec } => add_model::apply(self, spec),
            Command::SetPlan { plan } => set_plan::apply(self, plan),
            Command::PipelineReady { epoch, pipeline } => pipeline_ready::apply(self, *epoch, pipeline),
        }
    }

    /// Pipelines with a stage on this life of a worker can't answer until they are planned again.
    pub(super) fn unready(&mut self, id: &crate::ids::WorkerId, incarnation: u64) {
        for pipeline in &mut self.plan.pipelines {
            if pipeline.stages.iter().any(|stage| &stage.worker == id && stage.incarnation == incarnation) {
                pipeline.ready = false;
            }
        }
    }
}
