//! What one worker has to hold in the current epoch, as the wire says it.
//!
//! Must never assign what the plan does not say; a restarted worker gets nothing that was planned for its
//! former life.

use caravan_core::ids::WorkerId;
use caravan_core::limits;
use caravan_core::model::TensorSpec;
use caravan_core::plan::{Pipeline, Slice};
use caravan_proto::{WireError, pack, wire};

use super::machine::Machine;

impl Machine {
    /// All stages of an attached worker in the current plan; none is an answer too.
    pub(super) fn assignments_of(&self, id: &WorkerId) -> Result<wire::Assignments, WireError> {
        let plan = &self.state.plan;
        let mut assignments = Vec::new();
        for pipeline in &plan.pipelines {
            for (at, stage) in pipeline.stages.iter().enumerate() {
                let incarnation = self.attached.get(id).map(|attached| attached.incarnation);
                if &stage.worker == id && incarnation == Some(stage.incarnation) {
                    assignments.extend(self.assignment(pipeline, at)?);
                }
            }
        }
        Ok(wire::Assignments { epoch: plan.epoch.0, assignments })
    }

    fn assignment(&self, pipeline: &Pipeline, at: usize) -> Result<Option<wire::Assignment>, WireError> {
        let Some(spec) = self.state.models.get(&pipeline.model) else { return Ok(None) };
        let Some(stage) = pipeline.stages.get(at) else { return Ok(None) };
        let tensors: Vec<&TensorSpec> = spec.tensors_of(stage.slice).collect();
        let worker = |id: &WorkerId| self.state.workers.get(id).map(|worker| worker.profile.grpc.clone());
        let next = pipeline.stages.get(at + 1).and_then(|next| worker(&next.worker));
        let driver = self.state.coordinators.get(&pipeline.driver).map(|driver| driver.grpc.clone());
        Ok(Some(wire::Assignment {
            pipeline: pipeline.id.0.clone(),
            model: spec.name.clone(),
            config: pack(&spec.config)?,
            tensors: pack(&tensors)?,
            first: stage.slice.first,
            end: stage.slice.end,
            kv_pages: pipeline.kv_pages,
            page_tokens: limits::PAGE_TOKENS,
            stage: at as u32,
            stages: pipeline.stages.len() as u32,
            next: next.unwrap_or_default(),
            driver: driver.unwrap_or_default(),
            sources: self.sources(&pipeline.model, &stage.worker, stage.slice),
            header: spec.header.0.to_vec().into(),
            header_bytes: spec.header_bytes,
        }))
    }

    /// Who may have the tensors of a slice, best first: attached workers that held some of its layers in
    /// the plan before (most layers first), then coordinators that hold the model's file.
    fn sources(&self, model: &str, receiver: &WorkerId, slice: Slice) -> Vec<String> {
        let overlap = |held: Slice| held.end.min(slice.end).saturating_sub(held.first.max(slice.first));
        let mut holders: Vec<(u32, &str)> = self
            .previous
            .pipelines_of(model)
            .flat_map(|pipeline| &pipeline.stages)
            .filter(|stage| &stage.worker != receiver && overlap(stage.slice) > 0)
            .filter_map(|stage| {
                let attached = self.attached.get(&stage.worker)?;
                Some((overlap(stage.slice), attached.profile.grpc.as_str()))
            })
            .collect();
        holders.sort_by_key(|(layers, grpc)| (std::cmp::Reverse(*layers), *grpc));
        let digest = self.state.models.get(model).map(|spec| spec.digest);
        let files = self
            .state
            .coordinators
            .values()
            .filter(|coordinator| digest.is_some_and(|digest| coordinator.holds.contains(&digest)))
            .map(|coordinator| coordinator.grpc.as_str());
        let mut sources: Vec<String> = Vec::new();
        for grpc in holders.into_iter().map(|(_, grpc)| grpc).chain(files) {
            if !sources.iter().any(|known| known == grpc) && sources.len() < limits::SOURCES {
                sources.push(grpc.to_owned());
            }
        }
        sources
    }
}
