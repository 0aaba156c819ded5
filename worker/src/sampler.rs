//! Chooses the next token of one sequence from its logits, at the last stage.
//!
//! A choice is a pure function of the parameters, the logits, the position and the tokens seen
//! before it: a sampler made anew and told all earlier tokens goes on exactly.
//! Must never use the standard library's transcendental functions or a random source.
//!
//! The definition, in order, all sums in f64:
//!   1. logit bias; repetition penalty for tokens in prompt or answer; frequency and presence
//!      penalties for tokens in the answer (f32 arithmetic). Tokens that the constraint does not
//!      allow take no part from here on. The log-probabilities reported are of this distribution.
//!   2. temperature 0: the highest logit, ties to the lowest token.
//!   3. weight = exp((logit - highest) / temperature). Tokens are ranked by logit, highest first,
//!      ties by token.
//!   4. top_k: the k first ranks. top_p: the fewest first ranks of those whose weights (added in rank
//!      order) reach top_p times the sum of the kept weights (added in token order). min_p: of those,
//!      weights of at least min_p times the first one's.
//!   5. With the kept tokens in token order: the first whose running sum of weights exceeds u times
//!      their sum; u is `uniform(seed, position)`.

use std::collections::BTreeMap;

use caravan_constraint::Allowed;
use caravan_core::request::{Sampled, Sampling, TokenLogprob};
use caravan_kernels::math::{exp_f64, ln_f64};

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// This sequence's own fault, or the weights': it ends, others go on.
    #[error(
        "the logit of token {token} at position {position} is not a finite number: the weights or the \
         request's penalties are out of range; the same request will fail again"
    )]
    NotFinite { token: usize, position: u32 },
    /// The driver did not keep to the contract: its pipeline must end.
    #[error("{0}: a fault of the driver; submitting the request again is safe")]
    Driver(String),
}

/// The sampler of one sequence.
///
/// Contract: `see` is told the token of every position once it is known, in order from 0. `sample`
/// chooses the token of the next position and sees it at once. A position seen before is ignored:
/// the sampled token comes again as the token of the next decode chunk and counts once.
pub struct SequenceSampler {
    sampling: Sampling,
    prompt_tokens: u32,
    /// Positions 0..next are seen.
    next: u32,
    gap: bool,
    /// For each token of the text, how often it is in the answer (0: in the prompt only).
    seen: BTreeMap<u32, u32>,
    ranked: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f64,
}

impl SequenceSampler {
    /// `prompt_tokens`: positions below it are the prompt, the others the answer.
    pub fn new(sampling: Sampling, prompt_tokens: u32) -> SequenceSampler {
        let (seen, ranked) = (BTreeMap::new(), Vec::new());
        SequenceSampler { sampling, prompt_tokens, next: 0, gap: false, seen, ranked }
    }

    /// The token at `position` is known.
    pub fn see(&mut self, position: u32, token: u32) {
        if position < self.next {
            return;
        }
        self.gap |= position > self.next;
        self.next = position.saturating_add(1);
        *self.seen.entry(token).or_default() += u32::from(position >= self.prompt_tokens);
    }

    /// Chooses the token at `position`, which must be the next one, and sees it. `logits` are
    /// changed in place by bias and penalties; those that are not `allowed` become -infinity. Fails if
    /// a logit is not a finite number, if positions were left out, or if none is allowed; the sampler is
    /// then as it was.
    pub fn sample(
        &mut self,
        position: u32,
        logits: &mut [f32],
        allowed: Option<&Allowed>,
    ) -> Result<Sampled, SampleError> {
        if position != self.next || self.gap {
            return Err(SampleError::Driver(format!(
                "the sampler was not told every token before position {position} (next is {})",
                self.next
            )));
        }
        self.adjust(logits);
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(SampleError::NotFinite { token, position });
        }
        if let Some(allowed) = allowed {
            forbid(logits, allowed);
        }
        let best = greedy(logits).filter(|best| logits[*best as usize] > FORBIDDEN);
        let Some(best) = best else {
            return Err(SampleError::Driver("there are no logits of tokens that are allowed".into()));
        };
        let temperature = f64::from(self.sampling.temperature);
        let token = if temperature > 0.0 { self.draw(position, logits, best) } else { best };
        let (logprob, top) = match self.sampling.logprobs {
            None => (None, Vec::new()),
            Some(count) => {
                let (logprob, top) = self.logprobs(logits, best, token, count);
                (Some(logprob), top)
            }
        };
        self.see(position, token);
        Ok(Sampled { token, logprob, top })
    }

    /// Bias and penalties.
    fn adjust(&self, logits: &mut [f32]) {
        let s = &self.sampling;
        for (token, bias) in &s.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if s.repetition_penalty == 1.0 && s.frequency_penalty == 0.0 && s.presence_penalty == 0.0 {
            return;
        }
        for (token, answered) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            if s.repetition_penalty != 1.0 {
                *logit =
                    if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            }
            if *answered > 0 {
                *logit -= s.frequency_penalty * *answered as f32;
                *logit -= s.presence_penalty;
            }
        }
    }

    /// Steps 3 to 5 of the definition.
    fn draw(&mut self, position: u32, logits: &[f32], best: u32) -> u32 {
        let s = &self.sampling;
        let highest = f64::from(logits[best as usize]);
        let temperature = f64::from(s.temperature);
        let mut kept = std::mem::take(&mut self.ranked);
        kept.clear();
        kept.extend(candidates(logits));
        if s.top_k > 0 && (s.top_k as usize) < kept.len() {
            kept.select_nth_unstable_by(s.top_k as usize - 1, rank);
            kept.truncate(s.top_k as usize);
            kept.sort_unstable_by_key(|candidate| candidate.token);
        }
        for candidate in &mut kept {
            candidate.weight = exp_f64((f64::from(candidate.logit) - highest) / temperature);
        }
        if s.top_p < 1.0 {
            keep_top_p(&mut kept, f64::from(s.top_p));
        }
        if s.min_p > 0.0 {
            // The first one's weight is exp(0) = 1.
            kept.retain(|candidate| candidate.weight >= f64::from(s.min_p));
        }
        let total: f64 = kept.iter().map(|candidate| candidate.weight).sum();
        let goal = uniform(s.seed, position) * total;
        let mut sum = 0.0;
        let chosen = kept.iter().find(|candidate| {
            sum += candidate.weight;
            sum > goal
        });
        // Nothing is kept only if min_p is above 1; the most probable token then stands alone.
        let token = chosen.or(kept.last()).map_or(best, |candidate| candidate.token);
        self.ranked = kept;
        token
    }

    /// The log-probability of `token` and the `count` most probable ones.
    fn logprobs(&mut self, logits: &[f32], best: u32, token: u32, count: u8) -> (f32, Vec<TokenLogprob>) {
        let highest = f64::from(logits[best as usize]);
        let taking_part = logits.iter().filter(|logit| **logit > FORBIDDEN);
        let total: f64 = taking_part.map(|logit| exp_f64(f64::from(*logit) - highest)).sum();
        let log_total = ln_f64(total);
        let logprob = |logit: f32| ((f64::from(logit) - highest) - log_total) as f32;
        let all = &mut self.ranked;
        all.clear();
        if count > 0 {
            all.extend(candidates(logits));
            let count = usize::from(count).min(all.len());
            all.select_nth_unstable_by(count - 1, rank);
            all.truncate(count);
            all.sort_unstable_by(rank);
        }
        let top = all.iter().map(|c| TokenLogprob { token: c.token, logprob: logprob(c.logit) }).collect();
        (logprob(logits[token as usize]), top)
    }
}

/// The logit of a token that takes no part; those of all others are finite.
const FORBIDDEN: f32 = f32::NEG_INFINITY;

fn forbid(logits: &mut [f32], allowed: &Allowed) {
    let words = allowed.bits().iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        for (place, logit) in logits.iter_mut().enumerate() {
            if word >> place & 1 == 0 {
                *logit = FORBIDDEN;
            }
        }
    }
}

/// The tokens that take part, in order.
fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let all = logits.iter().enumerate().filter(|(_, logit)| **logit > FORBIDDEN);
    all.map(|(token, &logit)| Candidate { token: token as u32, logit, weight: 0.0 })
}

/// Highest logit first, ties by token.
fn rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // +0 and -0 are equal logits.
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The highest logit, ties to the lowest token; `None` without logits.
fn greedy(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    for (token, &logit) in logits.iter().enumerate() {
        if best.is_none_or(|(_, highest)| logit > highest) {
            best = Some((token as u32, logit));
        }
    }
    best.map(|(token, _)| token)
}

/// Keeps the fewest first ranks whose weights reach `top_p` of the sum; leaves them in token order.
/// Ranks only as many candidates as are needed.
fn keep_top_p(kept: &mut Vec<Candidate>, top_p: f64) {
    let goal = top_p * kept.iter().map(|candidate| candidate.weight).sum::<f64>();
    let (mut ranked, mut sum, mut count) = (0, 0.0, 0);
    let mut size = 64;
    while ranked < kept.len() {
        let rest = &mut kept[ranked..];
        let piece = size.min(rest.len());
        if piece < rest.len() {
            rest.select_nth_unstable_by(piece - 1, rank);
        }
        rest[..piece].sort_unstable_by(rank);
        for candidate in &rest[..piece] {
            sum += candidate.weight;
            count += 1;
            if sum >= goal {
                kept.truncate(count);
                kept.sort_unstable_by_key(|candidate| candidate.token);
                return;
            }
        }
        ranked += piece;
        size *= 4;
    }
    kept.sort_unstable_by_key(|candidate| candidate.token);
}

/// A number in 0..1 with 53 random bits that depends on nothing but `seed` and `position`: three
/// rounds of an invertible 64-bit mixer over the seed, the position and a constant.
pub fn uniform(seed: u64, position: u32) -> f64 {
    let keyed = mix(seed ^ 0x6361_7261_7661_6e31);
    let counted = mix(keyed.wrapping_add(u64::from(position).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (mix(counted ^ keyed.rotate_left(32)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Multiply and fold the high bits down, twice: every output bit depends on every input bit.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
