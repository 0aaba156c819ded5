//! What a header says of the rotation of heads: its scaling, and which tensor of factors is used.
//!
//! Must never let two kinds of scaling act at once: files that ask for that are refused.

use std::collections::BTreeMap;

use super::keys::Keys;
use super::{GgufError, TensorInfo, bad};
use crate::limits;
use crate::model::{RopeFactors, RopeScaling, Window};

pub(super) const FACTORS: &str = "rope_freqs.weight";
pub(super) const SHORT: &str = "rope_factors_short.weight";
pub(super) const LONG: &str = "rope_factors_long.weight";
/// Factors in the header itself.
const GIVEN: &str = "caravan.rope.factors";

/// Base in Gemma 3's local layers unless the file has another.
const LOCAL_BASE: f32 = 10_000.0;

/// Scaling by a number, by a tensor of factors, or none.
///
/// Of short and long factors one set holds for every position: the short one if the whole context
/// is within the length the model was first trained for. To change sets in the middle of a
/// sequence would turn its keys and queries by different steps.
pub(super) fn scaling(
    keys: &Keys,
    tensors: &BTreeMap<&str, &TensorInfo>,
    (rope_dim, context): (u32, u32),
) -> Result<RopeScaling, GgufError> {
    let kind = keys.get("rope.scaling.type").and_then(|value| value.as_text());
    let factor = match keys.positive_or_off("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.positive_or_off("rope.scale_linear")?,
    };
    let factor = factor.filter(|factor| *factor != 1.0);
    let magnitude = keys.positive_or_off("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let has = |name| tensors.contains_key(name);
    if let Some(factors) = keys.own_floats(GIVEN)? {
        if factor.is_some() || has(FACTORS) || has(SHORT) || has(LONG) {
            return bad(format!(
                "the file has {GIVEN:?} and another scaling of the rotation: which one holds?"
            ));
        }
        return given(factors, rope_dim, magnitude);
    }
    let name = match (has(FACTORS), has(SHORT) || has(LONG)) {
        (true, true) => {
            return bad(format!("the file has both {FACTORS:?} and {SHORT:?} or {LONG:?}: which one holds?"));
        }
        (true, false) => FACTORS,
        (false, true) => {
            let first =
                keys.required_count("rope.scaling.original_context_length", limits::CONTEXT_TOKENS)?;
            if context > first { LONG } else { SHORT }
        }
        (false, false) if kind == Some("longrope") => {
            return bad(format!("the file lacks the tensor {SHORT:?}"));
        }
        (false, false) if magnitude != 1.0 => {
            return bad(unsupported(keys, "rope.scaling.attn_factor"));
        }
        (false, false) => {
            return match (kind, factor) {
                (_, None) => Ok(RopeScaling::None),
                (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
                (_, Some(_)) => bad(unsupported(keys, "rope.scaling.factor")),
            };
        }
    };
    // The factor of longrope is already in its two tensors and in `attn_factor`.
    if factor.is_some() && kind != Some("longrope") {
        return bad(unsupported(keys, "rope.scaling.factor"));
    }
    Ok(RopeScaling::Factors { factors: RopeFactors::Tensor(name.to_owned()), magnitude })
}

/// Factors that the header itself holds.
fn given(factors: &[f64], rope_dim: u32, magnitude: f32) -> Result<RopeScaling, GgufError> {
    let factors: Vec<f32> = factors.iter().map(|factor| *factor as f32).collect();
    if factors.len() != rope_dim as usize / 2 {
        return bad(format!("the key {GIVEN:?} has {} factors for {} pairs", factors.len(), rope_dim / 2));
    }
    if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return bad(format!("the key {GIVEN:?} has a factor that is not a finite number above 0"));
    }
    Ok(RopeScaling::Factors { factors: RopeFactors::Given(factors), magnitude })
}

fn unsupported(keys: &Keys, key: &str) -> String {
    format!("the key {:?} does not go with the file's other scaling of the rotation", keys.name(key))
}

/// The window of a family whose layers are all local if one is set.
pub(super) fn plain_window(keys: &Keys, context: u32) -> Result<Option<Window>, GgufError> {
    let tokens = keys.count_or_off("attention.sliding_window")?;
    // A window that holds the whole context is none.
    let tokens = tokens.filter(|tokens| *tokens < context);
    Ok(tokens.map(|tokens| Window { tokens, global_every: 0, rope_base: None }))
}

/// Gemma 3: five local layers, then a global one; local ones have a base of their own.
pub(super) fn gemma_window(keys: &Keys, layers: u32) -> Result<Option<Window>, GgufError> {
    if keys.get("attention.sliding_window").is_none() {
        return bad(format!("the file lacks the key {:?}", keys.name("attention.sliding_window")));
    }
    let tokens = keys.count_or_off("attention.sliding_window")?;
    let base = keys.positive("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let global_every = match keys.get("attention.sliding_window_pattern") {
        None => 6,
        Some(value) => match value.as_bools() {
            None => keys.required_count("attention.sliding_window_pattern", limits::LAYERS)?,
            Some(local) => period(local, layers).ok_or_else(|| {
                let name = keys.name("attention.sliding_window_pattern");
                GgufError::Bad(format!(
                    "the key {name:?} does not say for each of {layers} layers, with every n-th one global, \
                     whether it is local"
                ))
            })?,
        },
    };
    Ok(tokens.map(|tokens| Window { tokens, global_every, rope_base: Some(base) }))
}

/// The n for which exactly every n-th layer is global; 0 if none is.
fn period(local: &[bool], layers: u32) -> Option<u32> {
    let first = local.iter().position(|local| !local);
    let period = first.map_or(0, |first| first as u32 + 1);
    let fits = local.iter().enumerate().all(|(layer, local)| {
        let global = period > 0 && (layer as u32 + 1).is_multiple_of(period);
        *local != global
    });
    (local.len() == layers as usize && fits).then_some(period)
}
