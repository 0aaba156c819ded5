//! The checks of a request record that every door makes before it counts on one.
//!
//! Must never depend on the load of the moment: the same record and model give the same verdict.

use crate::error::Refusal;
use crate::limits;
use crate::request::{Constraint, RequestRecord, Sampling};

/// Refuses a record that no pipeline of this model could ever compute.
///
/// `vocab` and `context` are the model's, in tokens. Every refusal is the client's fault and names
/// the field.
pub fn check_record(record: &RequestRecord, vocab: u32, context: u32) -> Result<(), Refusal> {
    if record.id.is_empty() || record.id.len() > limits::REQUEST_ID_BYTES {
        return Err(bad("id", format!("`id` must have 1 to {} bytes", limits::REQUEST_ID_BYTES)));
    }
    if record.prompt.is_empty() {
        return Err(bad("prompt", "the prompt has no tokens; send at least one"));
    }
    if record.prompt.len() >= context as usize {
        return Err(Refusal::client(
            "context_length_exceeded",
            "prompt",
            format!(
                "the prompt has {} tokens, and the model's context of {context} leaves no room for an answer; \
                 shorten the prompt",
                record.prompt.len()
            ),
        ));
    }
    if record.emitted.len() > context as usize {
        return Err(bad("emitted", format!("more tokens emitted than the context of {context} holds")));
    }
    for (name, tokens) in [("prompt", &record.prompt), ("emitted", &record.emitted)] {
        if let Some(token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(bad(name, format!("token {token} is not one of the model's {vocab} tokens")));
        }
    }
    if record.stop_tokens.len() > limits::STOP_TOKENS {
        return Err(bad("stop_tokens", format!("at most {} stop tokens can be given", limits::STOP_TOKENS)));
    }
    check_sampling(&record.sampling, vocab)
}

fn check_sampling(sampling: &Sampling, vocab: u32) -> Result<(), Refusal> {
    // A NaN is in no range.
    let any = f32::MIN..=f32::MAX;
    let share = 0.0..=1.0;
    let numbers = [
        ("repetition_penalty", sampling.repetition_penalty, f32::MIN_POSITIVE..=f32::MAX, "above 0"),
        ("frequency_penalty", sampling.frequency_penalty, any.clone(), "that is finite"),
        ("presence_penalty", sampling.presence_penalty, any, "that is finite"),
        ("temperature", sampling.temperature, 0.0..=f32::MAX, "of 0 or more"),
        ("top_p", sampling.top_p, share.clone(), "from 0 to 1"),
        ("min_p", sampling.min_p, share, "from 0 to 1"),
    ];
    for (name, value, range, words) in numbers {
        if !range.contains(&value) {
            return Err(bad(name, format!("`{name}` is {value}; it must be a number {words}")));
        }
    }
    if sampling.logprobs.is_some_and(|n| n > limits::TOP_LOGPROBS) {
        return Err(bad("top_logprobs", format!("at most {} can be asked for", limits::TOP_LOGPROBS)));
    }
    let bias = &sampling.logit_bias;
    if bias.len() > limits::LOGIT_BIAS_ENTRIES {
        return Err(bad(
            "logit_bias",
            format!("at most {} entries can be given", limits::LOGIT_BIAS_ENTRIES),
        ));
    }
    if let Some((token, value)) = bias.iter().find(|(token, value)| *token >= vocab || !value.is_finite()) {
        return Err(bad(
            "logit_bias",
            format!("{value} for token {token} is not a number for a token of the model"),
        ));
    }
    if bias.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return Err(bad("logit_bias", "the entries must be sorted by token, each token once"));
    }
    sampling.constraint.as_ref().map_or(Ok(()), |constraint| check_constraint(constraint, vocab))
}

/// Whether its text means anything is for those to say who compile it.
fn check_constraint(constraint: &Constraint, vocab: u32) -> Result<(), Refusal> {
    let field = "constraint";
    if constraint.text.len() > limits::CONSTRAINT_BYTES {
        let why = format!("a constraint has at most {} bytes", limits::CONSTRAINT_BYTES);
        return Err(bad(field, why));
    }
    if constraint.ends.is_empty() || constraint.ends.len() > limits::STOP_TOKENS {
        return Err(bad(field, "a constrained answer needs a token that ends it"));
    }
    if constraint.control.len() > limits::CONSTRAINT_TOKENS {
        let why = format!("a constraint names at most {} control tokens", limits::CONSTRAINT_TOKENS);
        return Err(bad(field, why));
    }
    for tokens in [&constraint.ends, &constraint.control] {
        if tokens.iter().any(|token| *token >= vocab) || tokens.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(bad(field, "its tokens must be the model's, sorted, each once"));
        }
    }
    Ok(())
}

fn bad(param: &str, message: impl Into<String>) -> Refusal {
    Refusal::client("invalid_value", param, message)
}
