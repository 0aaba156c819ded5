//! How heads are rotated: steps of the angles, by the model's scaling, and the angles of a step's rows.
//!
//! Must never let an angle depend on anything but the model and the position.

use anyhow::ensure;
use caravan_core::model::{ModelConfig, RopeFactors, RopePairing, RopeScaling};
use caravan_kernels::rows::{rope_angles, rope_steps};
use caravan_kernels::{Pairing, Team};

use super::{Batch, Scratch};
use crate::weights::Loader;

const ROWS_PER_PIECE: usize = 8;

pub struct Rotation {
    /// Of global layers.
    steps: Vec<f64>,
    /// Cosines and sines of global layers are multiplied by this.
    magnitude: f64,
    /// Of local layers, if they differ.
    local_steps: Option<Vec<f64>>,
}

impl Rotation {
    /// Loads the tensor of factors, if the model has one.
    pub fn load(config: &ModelConfig, loader: &Loader<'_>) -> anyhow::Result<Rotation> {
        let dim = config.rope_dim as usize;
        let mut steps = rope_steps(config.rope_base, dim);
        let mut magnitude = 1.0;
        match &config.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                steps.iter_mut().for_each(|step| *step /= f64::from(*factor));
            }
            RopeScaling::Factors { factors, magnitude: given } => {
                let factors = match factors {
                    RopeFactors::Given(factors) => factors.clone(),
                    RopeFactors::Tensor(name) => positive(name, loader.vector(name, config.rope_dim / 2)?)?,
                };
                for (step, factor) in steps.iter_mut().zip(factors) {
                    *step /= f64::from(factor);
                }
                magnitude = f64::from(*given);
            }
        }
        let local_base = config.window.and_then(|window| window.rope_base);
        let local_steps = local_base.map(|base| rope_steps(base, dim));
        Ok(Rotation { steps, magnitude, local_steps })
    }

    /// Angles of zero, for measurements.
    pub fn still(config: &ModelConfig) -> Rotation {
        let steps = vec![0.0; config.rope_dim as usize / 2];
        let local_base = config.window.and_then(|window| window.rope_base);
        Rotation { local_steps: local_base.map(|_| steps.clone()), steps, magnitude: 1.0 }
    }

    /// Computes the angles of every row of the step, once for all layers.
    pub fn set_angles(&self, team: &mut Team, batch: &Batch<'_>, scratch: &mut Scratch) {
        let [global, local] = &mut scratch.angles;
        fill(team, (&self.steps, self.magnitude), batch, global);
        match &self.local_steps {
            Some(steps) => fill(team, (steps, 1.0), batch, local),
            None => local.clear(),
        }
    }
}

/// Which of the scratch's angles a layer takes.
pub fn angles_of(config: &ModelConfig, layer: u32) -> usize {
    usize::from(config.window_of(layer).is_some_and(|window| window.rope_base.is_some()))
}

pub fn pairing(config: &ModelConfig) -> Pairing {
    match config.rope_pairing {
        RopePairing::Neighbours => Pairing::Neighbours,
        RopePairing::Halves => Pairing::Halves,
    }
}

fn positive(name: &str, factors: Vec<f32>) -> anyhow::Result<Vec<f32>> {
    ensure!(
        factors.iter().all(|factor| *factor > 0.0),
        "tensor `{name}` has a factor that is not above 0: use a sound file, retrying won't help"
    );
    Ok(factors)
}

fn fill(team: &mut Team, (steps, magnitude): (&[f64], f64), batch: &Batch<'_>, angles: &mut Vec<[f32; 2]>) {
    angles.resize(batch.sights.len() * steps.len(), [0.0; 2]);
    if steps.is_empty() {
        return;
    }
    team.each_piece(angles, steps.len() * ROWS_PER_PIECE, |part, angles| {
        for (i, angles) in angles.chunks_exact_mut(steps.len()).enumerate() {
            let position = batch.sights[part * ROWS_PER_PIECE + i].position;
            rope_angles(steps, magnitude, position, angles);
        }
    });
}
