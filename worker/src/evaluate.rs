//! How good the engine's answers are: perplexity of a text, and the distance of the engine as it is
//! served from the same weights unpacked to f32 and computed by the f32 kernels.
//!
//! Must never compare the engine with itself: the two paths share the file and nothing of the arithmetic
//! of quantised weights.

use anyhow::{Context, ensure};
use caravan_core::limits;
use caravan_kernels::Team;

use crate::local::LocalModel;
use crate::slice::{Chunk, LoadedSlice, StageInput, StageOutput};
use crate::weights::Form;

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Predictions.
    pub positions: u32,
    /// Tokens of one window; windows do not overlap, and each begins with an empty cache.
    pub context: u32,
    pub threads: usize,
}

/// Over all positions. Logarithms are natural.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    pub positions: u32,
    /// Of the text, by the engine as served.
    pub perplexity: f64,
    /// Of the text, by the f32 path.
    pub reference_perplexity: f64,
    /// Kullback–Leibler divergence of the served distribution from the f32 one.
    pub mean_kl: f64,
    pub max_kl: f64,
    /// Share of positions where both find the same token the likeliest.
    pub top1_agreement: f64,
}

/// Sums over positions, in f64.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    positions: u32,
    served_loss: f64,
    reference_loss: f64,
    kl: f64,
    max_kl: f64,
    same_top: u32,
}

/// One of the two paths.
struct Path {
    slice: LoadedSlice,
    pages: Vec<u32>,
}

/// Predicts every token of `tokens` after the first of its window, until `scope.positions` are done. Each
/// window is `bos` (if the model wants one) and then text. `progress` gets 0 to 1. Refuses a text that is
/// too short.
pub fn evaluate(
    model: &LocalModel,
    tokens: &[u32],
    bos: Option<u32>,
    scope: Scope,
    progress: &dyn Fn(f64),
) -> anyhow::Result<Distance> {
    let most = model.config().context;
    ensure!((2..=most).contains(&scope.context), "a window has 2 to {most} tokens, not {}", scope.context);
    let windows = windows(tokens, bos, scope)?;
    let mut team = Team::new(scope.threads);
    let mut served = Path::load(model, scope.context, Form::File)?;
    let mut reference = Path::load(model, scope.context, Form::F32)?;
    let vocab = model.config().vocab as usize;
    let mut sums = Sums::default();
    for window in windows {
        // The last token of a window is only predicted.
        let rows = window.len() - 1;
        for start in (0..rows).step_by(limits::EVAL_ROWS as usize) {
            let end = rows.min(start + limits::EVAL_ROWS as usize);
            let a = served.logits(&mut team, &window[start..end], start as u32)?;
            let b = reference.logits(&mut team, &window[start..end], start as u32)?;
            let pairs = a.chunks_exact(vocab).zip(b.chunks_exact(vocab));
            for ((a, b), target) in pairs.zip(&window[start + 1..=end]) {
                sums.add(a, b, *target)?;
            }
            progress(f64::from(sums.positions) / f64::from(scope.positions.max(1)));
        }
    }
    sums.distance()
}

/// The text cut into windows that hold just enough predictions.
fn windows(tokens: &[u32], bos: Option<u32>, scope: Scope) -> anyhow::Result<Vec<Vec<u32>>> {
    let text_each = scope.context as usize - usize::from(bos.is_some());
    let mut left = scope.positions as usize;
    let mut windows = Vec::new();
    for text in tokens.chunks(text_each) {
        let window: Vec<u32> = bos.into_iter().chain(text.iter().copied()).take(left + 1).collect();
        if left == 0 || window.len() < 2 {
            break;
        }
        left -= window.len() - 1;
        windows.push(window);
    }
    let there = scope.positions as usize - left;
    ensure!(
        left == 0 && there > 0,
        "the text of {} tokens gives {there} positions, not {}: take a longer text or fewer --positions",
        tokens.len(),
        scope.positions
    );
    Ok(windows)
}

impl Path {
    fn load(model: &LocalModel, context: u32, form: Form) -> anyhow::Result<Path> {
        let pages = context.div_ceil(limits::PAGE_TOKENS);
        let mut slice = model.load(model.whole(), pages, form, &|_| {})?;
        slice.all_logits(true);
        Ok(Path { slice, pages: (0..pages).collect() })
    }

    /// Logits of every one of `tokens`, which stand at `start` of the window.
    fn logits(&mut self, team: &mut Team, tokens: &[u32], start: u32) -> anyhow::Result<Vec<f32>> {
        let chunk = Chunk { start, tokens: tokens.to_vec(), pages: self.pages.clone(), sample: true };
        match self.slice.forward(team, &[chunk], StageInput::Tokens)? {
            StageOutput::Logits(logits) => Ok(logits),
            StageOutput::Activations(_) => anyhow::bail!("the whole model has no output head"),
        }
    }
}

impl Sums {
    /// One position: logits of both paths, and the token that came.
    fn add(&mut self, served: &[f32], reference: &[f32], target: u32) -> anyhow::Result<()> {
        let (served_top, served_norm) = norm(served)?;
        let (reference_top, reference_norm) = norm(reference)?;
        let target = target as usize;
        let loss = |logits: &[f32], norm: f64| logits.get(target).map(|logit| norm - f64::from(*logit));
        let beyond = "the text has a token beyond the model's vocabulary";
        self.served_loss += loss(served, served_norm).context(beyond)?;
        self.reference_loss += loss(reference, reference_norm).context(beyond)?;
        let mut kl = 0.0;
        for (a, b) in served.iter().zip(reference) {
            let (log_served, log_reference) = (f64::from(*a) - served_norm, f64::from(*b) - reference_norm);
            kl += log_reference.exp() * (log_reference - log_served);
        }
        // Rounding can make a divergence of nearly nothing negative.
        let kl = kl.max(0.0);
        self.kl += kl;
        self.max_kl = self.max_kl.max(kl);
        self.same_top += u32::from(served_top == reference_top);
        self.positions += 1;
        Ok(())
    }

    fn distance(&self) -> anyhow::Result<Distance> {
        ensure!(self.positions > 0, "nothing was compared");
        let count = f64::from(self.positions);
        Ok(Distance {
            positions: self.positions,
            perplexity: (self.served_loss / count).exp(),
            reference_perplexity: (self.reference_loss / count).exp(),
            mean_kl: self.kl / count,
            max_kl: self.max_kl,
            top1_agreement: f64::from(self.same_top) / count,
        })
    }
}

/// The likeliest token (the lowest of equals), and the logarithm of the sum of all exponentials.
fn norm(logits: &[f32]) -> anyhow::Result<(usize, f64)> {
    let mut top = 0;
    for (token, logit) in logits.iter().enumerate() {
        ensure!(logit.is_finite(), "the model gives a logit that is not a number: its file may be damaged");
        if *logit > logits[top] {
            top = token;
        }
    }
    let most = f64::from(*logits.get(top).context("the model has no vocabulary")?);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
    Ok((top, most + sum.ln()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn scope(positions: u32, context: u32) -> Scope {
        Scope { positions, context, threads: 1 }
    }

    #[test]
    fn a_worked_example() {
        // Served: probabilities 1/2, 1/4, 1/4; reference: 1/4, 1/2, 1/4.
        let (half, quarter) = (0.5f32.ln(), 0.25f32.ln());
        let mut sums = Sums::default();
        sums.add(&[half, quarter, quarter], &[quarter, half, quarter], 0).unwrap();
        let one = sums.distance().unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(one.perplexity, 2.0);
        close(one.reference_perplexity, 4.0);
        // 1/4 ln(1/2) + 1/2 ln 2 + 0
        close(one.mean_kl, 0.25 * 2f64.ln());
        assert_eq!(one.top1_agreement, 0.0);
        // Logits may be shifted by anything: here by 7 and by -3. The same distribution is no distance.
        sums.add(&[half + 7.0, quarter + 7.0, quarter + 7.0], &[half - 3.0, quarter - 3.0, quarter - 3.0], 1)
            .unwrap();
        let both = sums.distance().unwrap();
        close(both.perplexity, 8f64.sqrt());
        close(both.mean_kl, 0.125 * 2f64.ln());
        close(both.max_kl, 0.25 * 2f64.ln());
        assert_eq!(both.top1_agreement, 0.5);
        assert!(sums.add(&[0.0, f32::NAN], &[0.0, 0.0], 0).is_err());
        assert!(sums.add(&[0.0, 0.0], &[0.0, 0.0], 2).is_err());
    }

    #[test]
    fn windows_hold_the_positions_that_were_asked_for() {
        let tokens: Vec<u32> = (1..=10).collect();
        assert_eq!(windows(&tokens, None, scope(5, 4)).unwrap(), [vec![1, 2, 3, 4], vec![5, 6, 7]]);
        assert_eq!(windows(&tokens, Some(0), scope(5, 4)).unwrap(), [vec![0, 1, 2, 3], vec![0, 4, 5]]);
        assert_eq!(windows(&tokens, None, scope(7, 4)).unwrap().concat().len(), 10);
        assert!(windows(&tokens, None, scope(8, 4)).unwrap_err().to_string().contains("7 positions"));
        assert!(windows(&[], Some(0), scope(1, 4)).is_err());
        assert!(windows(&tokens, None, scope(0, 4)).is_err());
    }
}
