//! How `config.json` describes the rotation of heads, in its older and its newer form, as keys of a header.
//!
//! Must never pass over a kind of scaling that it does not compute.

use serde_json::json;

use super::config::{Class, Keys};
use super::json::Object;
use super::{FolderError, bad};
use crate::gguf::Value;
use crate::limits;
use crate::model::Family;

/// What the file says, whichever form it has.
struct Told<'a> {
    base: Option<f64>,
    /// Gemma 3's local layers'.
    local_base: Option<f64>,
    scaling: Option<Object<'a>>,
    /// `rope_scaling` must name its kind; `rope_parameters` need not.
    kind_needed: bool,
    /// Share of a head that is rotated.
    partial: Option<f64>,
}

/// `sizes`: dimensions of a head, and tokens of context.
pub(super) fn add(
    config: Object,
    class: &Class,
    sizes: (u32, u32),
    keys: &mut Keys,
) -> Result<(), FolderError> {
    let told = told(config)?;
    let (head_dim, context) = sizes;
    let share = told.partial.unwrap_or(1.0);
    if share > 1.0 || share != 1.0 && class.family != Family::Phi3 {
        return config.unsupported("partial_rotary_factor");
    }
    let rope_dim = (f64::from(head_dim) * share) as u32;
    let base = told.base.unwrap_or(class.rope_base);
    keys.count("rope.dimension_count", rope_dim);
    keys.put("rope.freq_base", Value::F64(base));
    if class.family == Family::Gemma3 {
        keys.put("rope.freq_base_swa", Value::F64(told.local_base.unwrap_or(10_000.0)));
    }
    let Some(scaling) = told.scaling else {
        return Ok(());
    };
    let kind = match scaling.text("rope_type")? {
        Some(kind) => Some(kind),
        None => scaling.text("type")?,
    };
    match kind {
        None if told.kind_needed => scaling.missing("rope_type"),
        None | Some("default") => Ok(()),
        Some("linear") => {
            keys.put("rope.scaling.type", Value::Text("linear".to_owned()));
            keys.put("rope.scaling.factor", Value::F64(scaling.required_positive("factor")?));
            Ok(())
        }
        Some("llama3") => {
            let factors = llama3(scaling, base, rope_dim)?;
            keys.whole("caravan.rope.factors", Value::Floats(factors));
            Ok(())
        }
        Some("longrope" | "su") => long(config, scaling, (rope_dim, context), keys),
        Some(_) => scaling.unsupported(if scaling.has("rope_type") { "rope_type" } else { "type" }),
    }
}

fn told(config: Object) -> Result<Told, FolderError> {
    let Some(parameters) = config.object("rope_parameters")? else {
        return Ok(Told {
            base: config.positive("rope_theta")?,
            local_base: config.positive("rope_local_base_freq")?,
            scaling: config.object("rope_scaling")?,
            kind_needed: true,
            partial: config.positive("partial_rotary_factor")?,
        });
    };
    let (all, local) = match parameters.object("full_attention")? {
        None => (parameters, None),
        Some(global) => (global, parameters.object("sliding_attention")?),
    };
    if let Some(local) = local {
        local.only("rope_type", &json!("default"))?;
    }
    let partial = match all.positive("partial_rotary_factor")? {
        None => config.positive("partial_rotary_factor")?,
        given => given,
    };
    Ok(Told {
        base: all.positive("rope_theta")?,
        local_base: local.map_or(Ok(None), |local| local.positive("rope_theta"))?,
        scaling: Some(all),
        kind_needed: false,
        partial,
    })
}

/// Factors of Llama 3.1 and later: waves longer than the first context are turned `factor` times slower, short
/// ones as they are, those between by interpolation.
fn llama3(scaling: Object, base: f64, rope_dim: u32) -> Result<Vec<f64>, FolderError> {
    let factor = scaling.required_positive("factor")?;
    let low = scaling.required_positive("low_freq_factor")?;
    let high = scaling.required_positive("high_freq_factor")?;
    let first = scaling.required_count("original_max_position_embeddings", limits::CONTEXT_TOKENS)?;
    if high <= low {
        return scaling.wrong("high_freq_factor", "above \"low_freq_factor\"");
    }
    let of = |pair: u32| {
        let step = base.powf(-2.0 * f64::from(pair) / f64::from(rope_dim));
        let turns = f64::from(first) * step / (2.0 * std::f64::consts::PI);
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        // As the kernels take it: the nearest f32.
        f64::from((1.0 / ((1.0 - smooth) / factor + smooth)) as f32)
    };
    Ok((0..rope_dim / 2).map(of).collect())
}

/// Of short and long factors one set holds for every position, as for GGUF files.
fn long(
    config: Object,
    scaling: Object,
    (rope_dim, context): (u32, u32),
    keys: &mut Keys,
) -> Result<(), FolderError> {
    let key = "original_max_position_embeddings";
    let first = match config.count(key, limits::CONTEXT_TOKENS)? {
        Some(first) => first,
        None => scaling.required_count(key, limits::CONTEXT_TOKENS)?,
    };
    let name = if context > first { "long_factor" } else { "short_factor" };
    let Some(factors) = scaling.positives(name)? else {
        return scaling.missing(name);
    };
    if factors.len() != rope_dim as usize / 2 {
        let count = factors.len();
        return bad(format!("config.json: {name:?} has {count} factors for {} pairs", rope_dim / 2));
    }
    let ratio = f64::from(context) / f64::from(first);
    let magnitude = match scaling.positive("attention_factor")? {
        Some(magnitude) => magnitude,
        None if ratio <= 1.0 => 1.0,
        None => (1.0 + ratio.ln() / f64::from(first).ln()).sqrt(),
    };
    if !(magnitude as f32).is_finite() {
        return bad(format!("config.json: {key:?} of {first} is too short for this kind of scaling"));
    }
    keys.whole("caravan.rope.factors", Value::Floats(factors));
    keys.put("rope.scaling.attn_factor", Value::F64(magnitude));
    Ok(())
}
