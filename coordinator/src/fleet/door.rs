//! Who may attach, what heartbeats say, and what is kept of a worker whose stream broke.
//!
//! Must never make a worker a member: the log does, when the machine has asked for it.

use caravan_core::cluster::WorkerProfile;
use caravan_core::ids::{Epoch, PipelineId, WorkerId};
use caravan_core::limits;
use caravan_proto::wire;

use super::machine::{Action, Attached, Connection, Detached, Machine, Now, send};

impl Machine {
    pub(super) fn hello(
        &mut self,
        now: Now,
        connection: Connection,
        hello: wire::WorkerHello,
        actions: &mut Vec<Action>,
    ) {
        let id = WorkerId(hello.worker.clone());
        if let Err(answer) = self.admit(now, &id, &hello) {
            actions.push(send(connection, answer));
            actions.push(Action::Close { connection });
            return;
        }
        if let Some(old) = self.attached.remove(&id) {
            self.connections.remove(&old.connection);
            self.measuring.forget(&id);
            actions.push(Action::Close { connection: old.connection });
        }
        self.detached.remove(&id);
        self.connections.insert(connection, id.clone());
        self.planner.progress(now.ms);
        let attached = Attached {
            connection,
            incarnation: hello.incarnation,
            profile: profile(hello),
            heard_ms: now.ms,
            heartbeat: wire::Heartbeat::default(),
            sent_epoch: None,
            sent_coordinators: Vec::new(),
        };
        self.attached.insert(id, attached);
    }

    /// Whether a worker may attach; if not, what to answer.
    fn admit(
        &self,
        now: Now,
        id: &WorkerId,
        hello: &wire::WorkerHello,
    ) -> Result<(), wire::directive::Directive> {
        // Not now, ask again: an empty redirect.
        let wait = || wire::directive::Directive::Redirect(wire::Redirect { grpc: String::new() });
        if !self.leads() {
            return Err(wait());
        }
        if hello.protocol_version != limits::PROTOCOL_VERSION {
            let why = format!(
                "worker {id} speaks protocol version {}, this cluster version {}: run the same build of caravan on \
                 both",
                hello.protocol_version,
                limits::PROTOCOL_VERSION
            );
            tracing::warn!(worker = %id, "{why}");
            return Err(wire::directive::Directive::Refused(wire::Refused { why }));
        }
        let epoch = self.state.plan.epoch;
        if hello.epoch > epoch.0 {
            tracing::warn!(
                worker = %id, epoch = epoch.0, claimed = hello.epoch,
                "a worker claims a newer epoch than the log has; it has to wait. If it served another cluster, \
                 restart it"
            );
            return Err(wait());
        }
        // The former process of a killed worker is noticed at once by its broken stream, so a stream
        // that was heard of lately belongs to a living process of the same name.
        let alive = |old: &Attached| now.ms < old.heard_ms + 5 * limits::HEARTBEAT_MS;
        if self.attached.get(id).is_some_and(|old| old.incarnation != hello.incarnation && alive(old)) {
            tracing::warn!(worker = %id, "a second process attaches under this worker's id; it has to wait");
            return Err(wait());
        }
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, now: Now, connection: Connection, mut heartbeat: wire::Heartbeat) {
        heartbeat.stages.truncate(limits::MODELS);
        for stage in &mut heartbeat.stages {
            if stage.error.len() > limits::STAGE_ERROR_BYTES {
                let end = stage.error.floor_char_boundary(limits::STAGE_ERROR_BYTES);
                stage.error.truncate(end);
            }
        }
        let Some(id) = self.connections.get(&connection).cloned() else { return };
        for stage in &heartbeat.stages {
            if stage.state == "failed" {
                let why = format!("worker {id} failed: {}", stage.error);
                self.pipeline_broken(now, Epoch(stage.epoch), PipelineId(stage.pipeline.clone()), &why);
            }
        }
        if let Some(attached) = self.attached.get_mut(&id) {
            attached.heard_ms = now.ms;
            attached.heartbeat = heartbeat;
        }
    }

    pub(super) fn detach(&mut self, now: Now, connection: Connection) {
        let Some(id) = self.connections.remove(&connection) else { return };
        let Some(attached) = self.attached.remove(&id) else { return };
        self.measuring.forget(&id);
        let Attached { incarnation, heard_ms, heartbeat, .. } = attached;
        self.detached.insert(id, Detached { incarnation, since_ms: now.ms, heard_ms, heartbeat });
    }
}

fn profile(hello: wire::WorkerHello) -> WorkerProfile {
    WorkerProfile {
        grpc: hello.grpc,
        device: hello.device,
        threads: hello.threads,
        memory_bytes: hello.memory_bytes,
        kv_bytes: hello.kv_bytes,
        numerics: hello.numerics,
    }
}
