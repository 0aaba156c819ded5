//! The parameters that chat and text completions share, checked.
//!
//! Must never let a parameter pass unread: what is not supported is refused by name.

use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::request::Sampling;

use super::fields::{Field, Fields, clip, invalid, unsupported};
use super::format::{self, Format};

/// What both endpoints take, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    pub model: String,
    /// Choices for each prompt.
    pub n: u32,
    /// Tokens of an answer at most, and the name of the field that said so.
    pub max_tokens: Option<(u32, &'static str)>,
    /// `seed` is set when the request gets its id, see `job`.
    pub sampling: Sampling,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    pub stream: bool,
    pub include_usage: bool,
    /// Extension: answers carry the token ids they consist of.
    pub return_token_ids: bool,
    /// What the answers have to look like.
    pub format: Option<Format>,
}

/// Parameters of OpenAI and of other servers, for both endpoints, that this server does not have.
pub const UNSUPPORTED: &[&str] = &[
    "add_generation_prompt",
    "add_special_tokens",
    "allowed_token_ids",
    "audio",
    "bad_words",
    "cache_prompt",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "dry_multiplier",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "json_schema",
    "length_penalty",
    "logits_processors",
    "min_tokens",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "moderation",
    "n_predict",
    "n_probs",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_logprobs",
    "reasoning",
    "reasoning_effort",
    "repeat_last_n",
    "repeat_penalty",
    "safety_identifier",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop_token_ids",
    "thinking",
    "truncate_prompt_tokens",
    "typical_p",
    "use_beam_search",
    "verbosity",
    "web_search_options",
];

/// Reads what both endpoints share. `logprobs` and the prompt are the endpoint's own.
pub fn common(fields: &mut Fields) -> Result<Common, Refusal> {
    let model = fields.take("model").required()?.string(512)?.unwrap_or_default();
    if model.is_empty() {
        return Err(invalid("model", "must not be empty"));
    }
    let n = integer(fields.take("n"), 1, i128::from(limits::CHOICES))?.unwrap_or(1);
    let stream = fields.take("stream").boolean()?.unwrap_or(false);
    let common = Common {
        model,
        n,
        max_tokens: max_tokens(fields)?,
        sampling: sampling(fields)?,
        seed: seed(fields.take("seed"))?,
        stop: stop(fields.take("stop"))?,
        ignore_eos: fields.take("ignore_eos").boolean()?.unwrap_or(false),
        stream,
        include_usage: include_usage(fields, stream)?,
        return_token_ids: fields.take("return_token_ids").boolean()?.unwrap_or(false),
        format: format::formats(fields)?,
    };
    format::check_ends(common.format.as_ref(), common.ignore_eos)?;
    without_effect(fields)?;
    Ok(common)
}

/// An integer that fits 32 bits.
pub fn integer(field: Field, min: i128, max: i128) -> Result<Option<u32>, Refusal> {
    Ok(field.integer_in(min..=max)?.and_then(|number| u32::try_from(number).ok()))
}

/// `max_tokens`, or its newer name; both only if they agree.
fn max_tokens(fields: &mut Fields) -> Result<Option<(u32, &'static str)>, Refusal> {
    let max = i128::from(limits::CONTEXT_TOKENS);
    let old = integer(fields.take("max_tokens"), 1, max)?;
    let new = integer(fields.take("max_completion_tokens"), 1, max)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            Err(invalid("max_completion_tokens", format!("is {new}, but `max_tokens` is {old}; send one")))
        }
        (_, Some(new)) => Ok(Some((new, "max_completion_tokens"))),
        (Some(old), None) => Ok(Some((old, "max_tokens"))),
        (None, None) => Ok(None),
    }
}

fn sampling(fields: &mut Fields) -> Result<Sampling, Refusal> {
    let penalty = |field: Field| Ok::<f32, Refusal>(field.number_in(-2.0..=2.0)?.unwrap_or(0.0) as f32);
    let presence_penalty = penalty(fields.take("presence_penalty"))?;
    let frequency_penalty = penalty(fields.take("frequency_penalty"))?;
    let top_k = fields.take("top_k").integer_in(-1..=i128::from(u32::MAX))?.unwrap_or(0).max(0);
    Ok(Sampling {
        logit_bias: logit_bias(fields.take("logit_bias"))?,
        repetition_penalty: positive(fields.take("repetition_penalty"), 10.0)?.unwrap_or(1.0),
        frequency_penalty,
        presence_penalty,
        temperature: fields.take("temperature").number_in(0.0..=2.0)?.unwrap_or(1.0) as f32,
        top_k: u32::try_from(top_k).unwrap_or(0),
        top_p: positive(fields.take("top_p"), 1.0)?.unwrap_or(1.0),
        min_p: fields.take("min_p").number_in(0.0..=1.0)?.unwrap_or(0.0) as f32,
        ..Sampling::default()
    })
}

/// A number in `(0, max]`, still above 0 as an f32.
fn positive(field: Field, max: f64) -> Result<Option<f32>, Refusal> {
    let path = field.path().to_owned();
    match field.number_in(0.0..=max)?.map(|number| number as f32) {
        Some(number) if number <= 0.0 => {
            Err(invalid(&path, format!("must be greater than 0 and at most {max}")))
        }
        number => Ok(number),
    }
}

/// Signed and unsigned 64-bit seeds are the same 64 bits.
fn seed(field: Field) -> Result<Option<u64>, Refusal> {
    let number = field.integer_in(i128::from(i64::MIN)..=i128::from(u64::MAX))?;
    Ok(number.map(|number| number as u64))
}

fn logit_bias(field: Field) -> Result<Vec<(u32, f32)>, Refusal> {
    let mut biases = Vec::new();
    for (name, field) in field.entries(limits::LOGIT_BIAS_ENTRIES)? {
        let path = field.path().to_owned();
        // One way of writing a number, so that no token comes twice.
        let token = name.parse::<u32>().ok().filter(|token| token.to_string() == name);
        let token = token.ok_or_else(|| invalid(&path, "must be named by a token id"))?;
        let bias = field.required()?.number_in(-100.0..=100.0)?.unwrap_or(0.0) as f32;
        biases.push((token, bias));
    }
    biases.sort_by_key(|(token, _)| *token);
    Ok(biases)
}

fn stop(field: Field) -> Result<Vec<String>, Refusal> {
    let texts = match field.is_string() || !field.present() {
        true => vec![field],
        false => field.array(limits::STOP_STRINGS)?.unwrap_or_default(),
    };
    let mut stops = Vec::new();
    for text in texts {
        let path = text.path().to_owned();
        match text.string(limits::STOP_STRING_BYTES)? {
            Some(text) if text.is_empty() => return Err(invalid(&path, "must not be empty")),
            Some(text) => stops.push(text),
            None => {}
        }
    }
    Ok(stops)
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Refusal> {
    let Some(mut options) = fields.take("stream_options").object()? else { return Ok(false) };
    let include = options.take("include_usage").boolean()?.unwrap_or(false);
    options.finish(&["include_obfuscation", "continuous_usage_stats"])?;
    if !stream {
        return Err(invalid("stream_options", "is only allowed with `stream`: true"));
    }
    Ok(include)
}

/// Parameters of which only the value that changes nothing is supported; `user` and `metadata` are
/// the client's own notes: checked, then dropped.
fn without_effect(fields: &mut Fields) -> Result<(), Refusal> {
    fields.take("user").string(4_096)?;
    for (name, value) in fields.take("metadata").entries(16)? {
        let path = value.path().to_owned();
        if name.chars().count() > 64 {
            return Err(invalid(&path, "has a name of more than 64 characters"));
        }
        if value.required()?.string(2_048)?.is_some_and(|text| text.chars().count() > 512) {
            return Err(invalid(&path, "has more than 512 characters"));
        }
    }
    only(fields.take("service_tier"), &["auto", "default"])?;
    fields.take("store").only_false("true is not supported: this server keeps nothing")?;
    for modality in fields.take("modalities").array(8)?.unwrap_or_default() {
        only(modality, &["text"])?;
    }
    Ok(())
}

/// Of a parameter with several values, those that mean what this server does anyway.
fn only(field: Field, allowed: &[&str]) -> Result<(), Refusal> {
    let path = field.path().to_owned();
    if field.is_object() {
        // The longer form of a choice that is not supported.
        return field.refuse("has a form that is not supported by this server yet");
    }
    match field.string(4_096)? {
        Some(text) if !allowed.contains(&text.as_str()) => {
            let why = format!("\"{}\" is not supported by this server yet, only {allowed:?}", clip(&text));
            Err(unsupported(&path, why))
        }
        _ => Ok(()),
    }
}
