//! A coordinator says where it is and which model files it holds.
//!
//! Must never change membership: that is the consensus group's own record.

use super::*;
use crate::ids::CoordinatorId;
use crate::limits;

pub(super) fn apply(state: &mut ClusterState, id: CoordinatorId, coordinator: &Coordinator) -> Outcome {
    if [&coordinator.grpc, &coordinator.http].iter().any(|address| address.len() > limits::ADDRESS_BYTES) {
        return Outcome::Refused(format!(
            "coordinator {id}: an address is longer than {} bytes",
            limits::ADDRESS_BYTES
        ));
    }
    if coordinator.holds.len() > limits::MODELS {
        return Outcome::Refused(format!(
            "coordinator {id} holds {} model files; at most {} are listed",
            coordinator.holds.len(),
            limits::MODELS
        ));
    }
    if state.coordinators.get(&id) == Some(coordinator) {
        return Outcome::Unchanged;
    }
    if !state.coordinators.contains_key(&id) && state.coordinators.len() >= limits::COORDINATORS {
        return Outcome::Refused(format!("the cluster has {} coordinators already", limits::COORDINATORS));
    }
    state.coordinators.insert(id, coordinator.clone());
    Outcome::Done
}
