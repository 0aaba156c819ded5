//! From the form and the tools of a request to the constraint of its records, found good before
//! anything is generated.
//!
//! Must never compile on a thread that others wait for, nor twice what is asked for again and again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use caravan_constraint::{ConstraintError, embedded};
use caravan_core::error::{Fault, Refusal};
use caravan_core::limits;
use caravan_core::request::{Constraint, ConstraintKind};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::App;
use super::backend::Text;
use super::errors::{ApiError, internal};
use super::fields::{invalid, unsupported};
use super::format::{Form, Format};
use super::params::Common;
use super::tools::{Tool, ToolMode, Tools, grammar};
use crate::text::{MISTRAL_MARKER, ToolStyle};

type Verdict = Result<(), ConstraintError>;

/// The verdicts of late on constraints, and turns at finding one.
pub struct Checked {
    /// By digest of the constraint, those asked for last at the back.
    verdicts: Mutex<VecDeque<([u8; 32], Verdict)>>,
    turns: Arc<Semaphore>,
}

impl Default for Checked {
    fn default() -> Checked {
        Checked { verdicts: Mutex::default(), turns: Arc::new(Semaphore::new(limits::CONSTRAINTS_COMPILING)) }
    }
}

impl Checked {
    fn known(&self, digest: &[u8; 32]) -> Option<Verdict> {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = verdicts.iter().position(|(known, _)| known == digest)?;
        let found = verdicts.remove(at)?;
        verdicts.push_back(found.clone());
        Some(found.1)
    }

    fn keep(&self, digest: [u8; 32], verdict: Verdict) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.push_back((digest, verdict));
        if verdicts.len() > limits::CONSTRAINTS_KEPT {
            verdicts.pop_front();
        }
    }

    /// The library's verdict, on a thread with a deep stack, a few at a time.
    async fn verdict(
        &self,
        text: &Arc<dyn Text>,
        model: &str,
        constraint: &Constraint,
        wait_ms: u64,
    ) -> Result<Verdict, ApiError> {
        let digest = digest(model, constraint);
        if let Some(verdict) = self.known(&digest) {
            return Ok(verdict);
        }
        let turn = self.turns.clone().acquire_owned();
        let busy = || {
            Refusal::cluster(
                "overloaded",
                limits::RETRY_AFTER_MS,
                "too many constraints wait to be compiled; try again",
            )
        };
        let turn = tokio::time::timeout(Duration::from_millis(wait_ms), turn).await.map_err(|_| busy())?;
        let (text, constraint) = (text.clone(), constraint.clone());
        let (reply, answer) = oneshot::channel();
        let work = move || {
            // Whoever asked may be gone.
            let _ = reply.send(text.check_constraint(&constraint));
            drop(turn);
        };
        let thread = std::thread::Builder::new().name("constraint".into());
        let spawned = thread.stack_size(limits::CONSTRAINT_STACK_BYTES).spawn(work);
        spawned.map_err(|_| busy())?;
        let verdict = answer.await.map_err(|_| internal("compiling the constraint failed"))?;
        self.keep(digest, verdict.clone());
        Ok(verdict)
    }
}

fn digest(model: &str, constraint: &Constraint) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let kind = format!("{:?} {:?} {:?}", constraint.kind, constraint.ends, constraint.control);
    for part in [model, &kind, &constraint.text] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The control token with which this model's calls begin, if they begin with one.
pub fn marker(text: &dyn Text) -> Option<u32> {
    match text.tool_style() {
        ToolStyle::Mistral => text.control_token(MISTRAL_MARKER),
        ToolStyle::Hermes | ToolStyle::Llama => None,
    }
}

/// The constraint of a request's answers, compiled once to see that it can be followed.
pub async fn constraint(
    app: &App,
    text: &Arc<dyn Text>,
    common: &Common,
    tools: &Tools,
) -> Result<Option<Constraint>, ApiError> {
    let marker = marker(&**text);
    let style = text.tool_style();
    let content = content(common.format.as_ref(), tools)?;
    let tool_grammar = grammar::grammar(tools, style, marker, content);
    let (kind, source, field) = match (tool_grammar, &common.format) {
        (Some(_), _) if common.ignore_eos => {
            let why = "can't be combined with tools whose calls are forced: the text ends with them";
            return Err(unsupported("ignore_eos", why).into());
        }
        (Some(grammar), _) => (ConstraintKind::Lark, grammar, "tools"),
        (None, Some(format)) => {
            let (kind, source) = format.form.constraint();
            (kind, source, format.field.as_str())
        }
        (None, None) => return Ok(None),
    };
    let control: Vec<u32> = if field == "tools" { marker.into_iter().collect() } else { Vec::new() };
    let constraint = Constraint { kind, text: source, ends: text.stop_tokens(), control };
    if constraint.ends.is_empty() {
        let why = "can't be used with this model: it has no token that ends an answer";
        return Err(unsupported(field, why).into());
    }
    if constraint.text.len() > limits::CONSTRAINT_BYTES {
        let why = format!("make a grammar of more than {} bytes", limits::CONSTRAINT_BYTES);
        return Err(invalid(field, why).into());
    }
    let wait_ms = app.waits.prepare_ms;
    let verdict = app.constraints.verdict(text, &common.model, &constraint, wait_ms).await?;
    let Err(error) = verdict else { return Ok(Some(constraint)) };
    // Which of several schemas it is, each one alone must tell.
    for tool in tools.callable().into_iter().filter(|_| field == "tools") {
        let alone = alone(tool, &constraint);
        if let Err(error) = app.constraints.verdict(text, &common.model, &alone, wait_ms).await? {
            return Err(refused(&tool.field, &error).into());
        }
    }
    Err(refused(field, &error).into())
}

/// Schema of an answer without calls where tools are offered too.
fn content(format: Option<&Format>, tools: &Tools) -> Result<Option<Value>, Refusal> {
    let Some(format) = format else { return Ok(None) };
    if tools.callable().is_empty() || tools.mode == ToolMode::Required {
        return Ok(None);
    }
    match &format.form {
        Form::JsonObject => Ok(Some(embedded(json!({"type": "object"}), false))),
        Form::JsonSchema { schema, strict } => Ok(Some(embedded(schema.clone(), !strict))),
        Form::Regex(_) | Form::Choice(_) | Form::Grammar(_) => {
            Err(unsupported(&format.field, "can't be combined with `tools` that may be called"))
        }
    }
}

/// A tool's schema as a constraint of its own.
fn alone(tool: &Tool, of: &Constraint) -> Constraint {
    let schema = tool.parameters.clone().unwrap_or_else(|| json!({"type": "object"}));
    let kind = ConstraintKind::JsonSchema { lenient: !tool.strict };
    Constraint { kind, text: schema.to_string(), control: Vec::new(), ..of.clone() }
}

fn refused(field: &str, error: &ConstraintError) -> Refusal {
    match error.fault() {
        Fault::Client => invalid(field, format!("can't be used: {error}")),
        _ => Refusal::operator("internal", format!("`{field}` can't be used: {error}")),
    }
}
