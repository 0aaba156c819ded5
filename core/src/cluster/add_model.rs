//! A model enters the catalogue.
//!
//! Must never replace a model's weights under its name: answers would change in silence.

use super::*;
use crate::limits;
use crate::model::ModelSpec;

pub(super) fn apply(state: &mut ClusterState, spec: &ModelSpec) -> Outcome {
    let name = &spec.name;
    if let Some(known) = state.models.get(name) {
        return if known == spec {
            Outcome::Unchanged
        } else {
            Outcome::Refused(format!(
                "the catalogue has a model {name} with other weights or another KV cache ({:?} with {}, not {:?} \
                 with {}); use another name",
                known.digest,
                known.config.kv.name(),
                spec.digest,
                spec.config.kv.name()
            ))
        };
    }
    if name.is_empty() || name.len() > limits::MODEL_NAME_BYTES {
        return Outcome::Refused(format!("a model's name has 1 to {} bytes", limits::MODEL_NAME_BYTES));
    }
    let layers = spec.config.layers;
    if layers == 0 || layers > limits::LAYERS {
        return Outcome::Refused(format!("model {name} has {layers} layers; 1 to {} work", limits::LAYERS));
    }
    if spec.tensors.len() as u64 > limits::GGUF_TENSORS {
        return Outcome::Refused(format!("model {name} has more than {} tensors", limits::GGUF_TENSORS));
    }
    if state.models.len() >= limits::MODELS {
        return Outcome::Refused(format!("the catalogue is full: {} models", limits::MODELS));
    }
    state.models.insert(name.clone(), spec.clone());
    Outcome::Done
}
