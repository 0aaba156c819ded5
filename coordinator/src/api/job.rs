//! From a checked request to records: model, readiness, tokens, context, ids and seeds.
//!
//! Must never start a sequence: it hands back records, `stream` has them generated.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use caravan_core::cluster::ClusterState;
use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::model::ModelSpec;
use caravan_core::request::{RequestRecord, Sampling};

use super::answer::Calls;
use super::backend::Text;
use super::completions::{DEFAULT_MAX_TOKENS, Prompt};
use super::errors::{ApiError, internal};
use super::fields::invalid;
use super::health;
use super::params::Common;
use super::shape::Envelope;
use super::tools::Tools;
use super::tools::calls::CallParser;
use super::{App, constrain};
use crate::text::{ChatMessage, Conversation, MISTRAL_MARKER};

/// What is to be tokenised.
pub enum Input {
    Chat { messages: Vec<ChatMessage>, tools: Tools },
    Prompts(Vec<Prompt>),
}

impl Input {
    /// Tokens of every prompt. One of more than `most` tokens is refused before all of it is tokenised.
    fn tokens(&self, text: &dyn Text, most: usize) -> Result<Vec<Vec<u32>>, Refusal> {
        let prompts = match self {
            Input::Chat { messages, tools } => {
                let tools = tools.for_template();
                let conversation = Conversation { messages: messages.clone(), tools };
                return Ok(vec![text.chat_tokens(&conversation, most)?]);
            }
            Input::Prompts(prompts) => prompts,
        };
        let one = |(i, prompt): (usize, &Prompt)| match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Text(prompt) => match text.raw_tokens(prompt, most) {
                Some(tokens) => Ok(text.bos().into_iter().chain(tokens).collect()),
                None => {
                    let at = prompt_path(i, prompts.len());
                    let why = format!("`{at}` has more than the {most} tokens that this model has room for");
                    Err(Refusal::client("context_length_exceeded", &at, why))
                }
            },
        };
        prompts.iter().enumerate().map(one).collect()
    }
}

/// `prompt`, or `prompt[i]` if there are several.
fn prompt_path(i: usize, count: usize) -> String {
    if count == 1 { "prompt".to_owned() } else { format!("prompt[{i}]") }
}

/// Everything that answering takes.
pub struct Job {
    pub envelope: Envelope,
    pub text: Arc<dyn Text>,
    pub common: Common,
    /// One for each choice; choice `i` belongs to prompt `i / n`.
    pub records: Vec<RequestRecord>,
    /// Tokens of all prompts, each counted once.
    pub prompt_tokens: u64,
    /// Tools that the answers may call.
    pub tools: Tools,
}

impl Job {
    /// What finds the tool calls of the choice of this record.
    pub fn call_parser(&self, record: &RequestRecord) -> Option<Calls> {
        let names: Vec<String> = self.tools.callable().iter().map(|tool| tool.name.clone()).collect();
        if names.is_empty() {
            return None;
        }
        let style = self.text.tool_style();
        let parser = CallParser::new(style, names, self.tools.parallel, &record.id);
        let marker = constrain::marker(&*self.text).map(|token| (token, MISTRAL_MARKER));
        Some(Calls { parser, marker })
    }
}

/// Checks a request against the cluster and makes its records. `prefix` begins the answer's id.
pub async fn prepare(app: &App, common: Common, input: Input, prefix: &str) -> Result<Job, ApiError> {
    let spec = find_model(app, &common.model)?;
    await_ready(app, &spec.name).await?;
    let text =
        tokio::time::timeout(Duration::from_millis(app.waits.prepare_ms), app.backend.text(spec.clone()))
            .await
            .map_err(|_| overloaded("the tokenizer of the model could not be fetched in time"))??;
    let (reader, chat) = (text.clone(), matches!(input, Input::Chat { .. }));
    let tools = match &input {
        Input::Chat { tools, .. } => tools.clone(),
        Input::Prompts(_) => Tools::default(),
    };
    let constraint = constrain::constraint(app, &text, &common, &tools).await?;
    let most = spec.config.context.saturating_sub(1) as usize;
    let prompts = app.blocking(move || input.tokens(&*reader, most)).await??;
    let prompt_tokens = prompts.iter().map(|prompt| prompt.len() as u64).sum();
    let id = app.ids.next();
    let now_ms = now_ms();
    let base = RequestRecord {
        id: id.clone(),
        model: spec.name.clone(),
        prompt: Vec::new(),
        emitted: Vec::new(),
        sampling: Sampling { constraint, ..common.sampling.clone() },
        stop_tokens: if common.ignore_eos { Vec::new() } else { text.stop_tokens() },
        max_tokens: 0,
        accepted_ms: now_ms,
        deadline_ms: now_ms.saturating_add(limits::REQUEST_DEADLINE_MS),
    };
    check_bias(&common, &spec)?;
    let kv_tokens = kv_tokens(app, &spec.name);
    let seed = common.seed.unwrap_or_else(|| derive("caravan seed of a request", id.as_bytes()));
    let count = prompts.len();
    let mut records = Vec::new();
    for (i, prompt) in prompts.into_iter().enumerate() {
        let at = if chat { "messages".to_owned() } else { prompt_path(i, count) };
        check_prompt(&prompt, &at, &spec)?;
        let max_tokens = answer_length(&common, &prompt, (chat, kv_tokens), &spec)?;
        for _ in 0..common.n {
            let index = records.len() as u64;
            let mut record = RequestRecord {
                id: format!("{id}-{index}"),
                max_tokens,
                prompt: prompt.clone(),
                ..base.clone()
            };
            record.sampling.seed = choice_seed(seed, index);
            records.push(record);
        }
    }
    let envelope = Envelope {
        id: format!("{prefix}{id}"),
        created: now_ms / 1_000,
        model: spec.name.clone(),
        fingerprint: fingerprint(&spec),
    };
    Ok(Job { envelope, text, common, records, prompt_tokens, tools })
}

fn overloaded(why: &str) -> ApiError {
    Refusal::cluster("overloaded", limits::RETRY_AFTER_MS, format!("{why}; try again")).into()
}

/// The model of that name. A cluster that knows no model yet has not said that this one is wrong.
fn find_model(app: &App, name: &str) -> Result<Arc<ModelSpec>, ApiError> {
    let state = app.state();
    match state.models.get(name) {
        Some(spec) => Ok(Arc::new(spec.clone())),
        None if state.models.is_empty() => Err(not_ready(app)),
        None => Err(model_not_found(&state, name).into()),
    }
}

pub fn model_not_found(state: &ClusterState, name: &str) -> Refusal {
    let known: Vec<&str> = state.models.keys().map(String::as_str).collect();
    let name = super::fields::clip(name);
    let message = format!("model `{name}` does not exist here; there are: {}", known.join(", "));
    Refusal::client("model_not_found", "model", message)
}

/// 503 with what the cluster is doing.
fn not_ready(app: &App) -> ApiError {
    let progress = health::readiness(&*app.backend);
    let message = format!("the cluster cannot answer yet ({}): {}", progress.phase, progress.detail);
    Refusal::cluster("not_ready", limits::RETRY_AFTER_MS, message).into()
}

/// Waits for a ready pipeline of the model while there is hope of one.
async fn await_ready(app: &App, model: &str) -> Result<(), ApiError> {
    let mut states = app.backend.state();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(app.waits.ready_ms);
    loop {
        let state = states.borrow_and_update().clone();
        if state.plan.pipelines_of(model).any(|pipeline| pipeline.ready) {
            return Ok(());
        }
        let planned = state.plan.pipelines_of(model).next().is_some();
        let workers =
            state.workers.values().any(|worker| worker.state != caravan_core::cluster::WorkerState::Lost);
        if !planned && !workers {
            return Err(not_ready(app));
        }
        match tokio::time::timeout_at(deadline, states.changed()).await {
            Ok(Ok(())) => {}
            _ => return Err(not_ready(app)),
        }
    }
}

fn check_bias(common: &Common, spec: &ModelSpec) -> Result<(), Refusal> {
    match common.sampling.logit_bias.last() {
        Some((token, _)) if *token >= spec.config.vocab => {
            let why = format!(
                "names a token that model `{}` does not have ({} tokens)",
                spec.name, spec.config.vocab
            );
            Err(invalid(&format!("logit_bias.{token}"), why))
        }
        _ => Ok(()),
    }
}

fn check_prompt(prompt: &[u32], at: &str, spec: &ModelSpec) -> Result<(), Refusal> {
    if prompt.is_empty() {
        return Err(invalid(at, "has no tokens"));
    }
    if let Some(token) = prompt.iter().find(|token| **token >= spec.config.vocab) {
        let why = format!("holds token {token}, but model `{}` has {} tokens", spec.name, spec.config.vocab);
        return Err(invalid(at, why));
    }
    if prompt.len() as u64 >= u64::from(spec.config.context) {
        let message = format!(
            "`{at}` has {} tokens, but the context of model `{}` is {} tokens and must hold the answer too",
            prompt.len(),
            spec.name,
            spec.config.context
        );
        return Err(Refusal::client("context_length_exceeded", at, message));
    }
    Ok(())
}

/// Tokens that the KV pages of the model's roomiest pipeline hold.
fn kv_tokens(app: &App, model: &str) -> u32 {
    let state = app.state();
    let pages = state.plan.pipelines_of(model).map(|pipeline| pipeline.kv_pages).max();
    pages.map_or(u32::MAX, |pages| pages.saturating_mul(limits::PAGE_TOKENS))
}

/// Tokens of the answer at most. The prompt is known to fit the context. An answer whose length
/// was not asked for stops where the context or the KV pages end; one that was asked for and
/// does not fit the pages is the driver's to refuse.
fn answer_length(
    common: &Common,
    prompt: &[u32],
    (chat, kv_tokens): (bool, u32),
    spec: &ModelSpec,
) -> Result<u32, Refusal> {
    let context = spec.config.context;
    let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    let left = context.saturating_sub(prompt_tokens);
    match common.max_tokens {
        None if chat => Ok(left.min(kv_tokens.saturating_sub(prompt_tokens)).max(1)),
        None => Ok(left.min(DEFAULT_MAX_TOKENS)),
        Some((wanted, _)) if wanted <= left => Ok(wanted),
        Some((wanted, field)) => {
            let message = format!(
                "`{field}` asks for {wanted} tokens and the prompt has {}; the context of model `{}` is {context} tokens",
                prompt.len(),
                spec.name
            );
            Err(Refusal::client("context_length_exceeded", field, message))
        }
    }
}

fn derive(context: &str, input: &[u8]) -> u64 {
    let digest = blake3::derive_key(context, input);
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(bytes)
}

/// Seed of a choice: the request's own for the first, others derived from it.
pub fn choice_seed(seed: u64, index: u64) -> u64 {
    if index == 0 {
        return seed;
    }
    let input = [seed.to_le_bytes(), index.to_le_bytes()].concat();
    derive("caravan seed of a choice", &input)
}

/// The numerics profile of a model: what decides the bits of its answers.
pub fn fingerprint(spec: &ModelSpec) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [limits::KERNEL_VERSION.as_bytes(), &spec.digest.0, b"activations i16"] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    format!("fp_{}", &hasher.finalize().to_hex()[..16])
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Makes request ids that no other process makes: from the operating system's randomness and a counter.
pub struct RequestIds {
    secret: RandomState,
    started_ms: u64,
    count: AtomicU64,
}

impl RequestIds {
    pub fn new() -> RequestIds {
        RequestIds { secret: RandomState::new(), started_ms: now_ms(), count: AtomicU64::new(0) }
    }

    /// 32 hexadecimal digits.
    pub fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let half = |salt: u64| {
            let mut hasher = self.secret.build_hasher();
            for word in [salt, self.started_ms, u64::from(std::process::id()), count] {
                hasher.write_u64(word);
            }
            hasher.finish()
        };
        format!("{:016x}{:016x}", half(1), half(2))
    }
}

impl App {
    /// Runs what may take long away from the async threads, a few at a time.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.preparing.clone().acquire_owned();
        let permit = tokio::time::timeout(Duration::from_millis(self.waits.prepare_ms), turn)
            .await
            .map_err(|_| overloaded("too many requests wait to be parsed"))?
            .map_err(|_| internal("the queue of requests is closed"))?;
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        task.await.map_err(|error| {
            tracing::error!(%error, "preparing a request failed");
            internal("preparing the request failed")
        })
    }
}
