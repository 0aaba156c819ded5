//! Text to tokens and back: tokenizer, chat template, incremental detokeniser, stop strings.
//!
//! Must never let one request's text cost more than its length deserves, nor let what a client writes
//! inside a message pass for a control token.

mod bytes;
mod detok;
mod keys;
mod pieces;
mod special;
mod split;
mod stages;
mod template;
mod tokenizer;
mod tools;

#[cfg(test)]
mod corpus_tests;
#[cfg(test)]
mod detok_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod pieces_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod template_tests;
#[cfg(test)]
mod tools_tests;
#[cfg(test)]
mod vocabulary_tests;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use caravan_constraint::{Compiler, ConstraintError};
use caravan_core::error::Refusal;
use caravan_core::gguf::Gguf;
use caravan_core::request::Constraint;
use serde_json::Value;

pub use detok::{Detokenizer, StopMatcher};
use template::ChatTemplate;
use tokenizer::{Encoding, Tokenizer};
pub use tools::{MISTRAL_MARKER, ToolCall, ToolStyle};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    /// What an assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// Whose result a tool's message is.
    pub tool_call_id: Option<String>,
    /// The tool's name, in its message.
    pub name: Option<String>,
}

impl ChatMessage {
    pub fn new(role: &str, content: impl Into<String>) -> ChatMessage {
        ChatMessage { role: role.to_owned(), content: content.into(), ..ChatMessage::default() }
    }
}

/// Messages and the tools that the model is told of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<ChatMessage>,
    /// As chat templates take them: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub tools: Vec<Value>,
}

impl From<Vec<ChatMessage>> for Conversation {
    fn from(messages: Vec<ChatMessage>) -> Conversation {
        Conversation { messages, tools: Vec::new() }
    }
}

impl Conversation {
    fn has_tools(&self) -> bool {
        let called = |message: &ChatMessage| !message.tool_calls.is_empty() || message.role == "tool";
        !self.tools.is_empty() || self.messages.iter().any(called)
    }

    /// Hands every text in it to `look`.
    fn texts<'a>(&'a self, look: &mut dyn FnMut(&'a str)) {
        for message in &self.messages {
            look(&message.role);
            look(&message.content);
            message.tool_call_id.iter().chain(&message.name).for_each(|text| look(text));
            for call in &message.tool_calls {
                [&call.id, &call.name, &call.arguments].into_iter().for_each(|text| look(text));
            }
        }
        self.tools.iter().for_each(|tool| texts_of(tool, look));
    }

    /// The same with every text changed.
    fn map(&self, change: &dyn Fn(&str) -> String) -> Conversation {
        let optional = |text: &Option<String>| text.as_deref().map(change);
        let call = |call: &ToolCall| ToolCall {
            id: change(&call.id),
            name: change(&call.name),
            arguments: change(&call.arguments),
        };
        let messages = self.messages.iter().map(|message| ChatMessage {
            role: change(&message.role),
            content: change(&message.content),
            tool_calls: message.tool_calls.iter().map(call).collect(),
            tool_call_id: optional(&message.tool_call_id),
            name: optional(&message.name),
        });
        let tools = self.tools.iter().map(|tool| mapped(tool, change));
        Conversation { messages: messages.collect(), tools: tools.collect() }
    }
}

fn texts_of<'a>(value: &'a Value, look: &mut dyn FnMut(&'a str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| texts_of(item, look)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            look(key);
            texts_of(value, look);
        }),
        _ => {}
    }
}

fn mapped(value: &Value, change: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(change(text)),
        Value::Array(items) => items.iter().map(|item| mapped(item, change)).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (change(key), mapped(value, change))).collect(),
        other => other.clone(),
    }
}

/// Everything textual of one model. Immutable, shared.
pub struct TextModel {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    stop_tokens: Vec<u32>,
    tool_style: ToolStyle,
    /// The template shows tools, calls and results by itself.
    template_has_tools: bool,
    /// Made when a constraint is first asked for.
    compiler: Mutex<Option<Arc<Compiler>>>,
}

/// Control tokens that end a text whatever the template says.
const ENDS_OF_TEXT: [&str; 2] = ["<|endoftext|>", "<|end_of_text|>"];
/// Control tokens that end a turn, where the template writes them.
const ENDS_OF_TURN: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endofturn|>"];

impl TextModel {
    /// From the header of a model file. An error is the operator's: the file's tokenizer is damaged
    /// or of a kind that this build does not have. A template that does not compile is an error of
    /// chats only (`render_chat` says so): completions work without one.
    pub fn from_gguf(gguf: &Gguf) -> anyhow::Result<TextModel> {
        let tokenizer = Tokenizer::from_gguf(gguf).context("the model file's tokenizer can't be used")?;
        let template = ChatTemplate::from_gguf(gguf);
        let turn_ends = ENDS_OF_TURN.iter().filter(|token| template.source().contains(**token));
        let named = turn_ends.chain(&ENDS_OF_TEXT).filter_map(|token| tokenizer.control_token(token));
        let mut stop_tokens: Vec<u32> = named.collect();
        stop_tokens.extend(tokenizer.stops());
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let tool_style = ToolStyle::of_template(template.source());
        // The name stands in the tools and in the call: both must be shown.
        let rendered = template.render(&tools::probe());
        let template_has_tools = rendered.is_ok_and(|text| text.matches(tools::PROBE).count() >= 2);
        let compiler = Mutex::default();
        Ok(TextModel { tokenizer, template, stop_tokens, tool_style, template_has_tools, compiler })
    }

    /// Tokens of `text`. `special`: control tokens written out in the text become those tokens.
    /// Characters for which the vocabulary has no bytes give no token, as in the model's training.
    pub fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.tokenizer.encode(text, Encoding { special, ..Encoding::default() }, &mut tokens);
        tokens
    }

    /// As `encode`, but gives up (`None`) as soon as there are more than `most` tokens, so that a
    /// text which can't fit the context costs no more than one that does.
    pub fn encode_within(&self, text: &str, special: bool, most: usize) -> Option<Vec<u32>> {
        let mut tokens = Vec::new();
        let encoding = Encoding { special, most, ..Encoding::default() };
        self.tokenizer.encode(text, encoding, &mut tokens).then_some(tokens)
    }

    /// The prompt of a conversation, by the model's own template. Errors name `messages`.
    /// To show a person; `prompt_tokens` is what to compute, for text alone can't tell a control token
    /// of the template from one that a client wrote.
    pub fn render_chat(&self, conversation: &Conversation) -> Result<String, Refusal> {
        self.template.render(&self.plain(conversation))
    }

    /// Without tools, if the template does not show them.
    fn plain<'a>(&self, conversation: &'a Conversation) -> Cow<'a, Conversation> {
        match conversation.has_tools() && !self.template_has_tools {
            true => Cow::Owned(tools::written_out(conversation).into()),
            false => Cow::Borrowed(conversation),
        }
    }

    /// Tokens of a conversation's prompt. Control tokens that stand in a message or a tool
    /// are plain text: only the template's own become control tokens.
    pub fn prompt_tokens(&self, conversation: &Conversation) -> Result<Vec<u32>, Refusal> {
        self.prompt_tokens_within(conversation, usize::MAX)
    }

    /// As `prompt_tokens`; refuses a prompt of more than `most` tokens (`context_length_exceeded`)
    /// without computing the rest of them.
    pub fn prompt_tokens_within(
        &self,
        conversation: &Conversation,
        most: usize,
    ) -> Result<Vec<u32>, Refusal> {
        let plain = self.plain(conversation);
        let guarded = special::guard(&plain, self.tokenizer.special(), self.template.source())?;
        let text = self.template.render(&guarded.conversation)?;
        let mut tokens = Vec::new();
        let encoding = Encoding { special: true, drop: guarded.mark, most };
        match self.tokenizer.encode(&text, encoding, &mut tokens) {
            true => Ok(tokens),
            false => Err(Refusal::client(
                "context_length_exceeded",
                "messages",
                format!(
                    "the messages are longer than the {most} tokens that this model has room for; shorten them"
                ),
            )),
        }
    }

    /// How this model calls tools.
    pub fn tool_style(&self) -> ToolStyle {
        self.tool_style
    }

    /// The control token of this text.
    pub fn control_token(&self, text: &str) -> Option<u32> {
        self.tokenizer.control_token(text)
    }

    /// Whether a constraint can be followed with this model's vocabulary: the same verdict as the last
    /// stage's. Takes up to a second, and a deep stack (`limits::CONSTRAINT_STACK_BYTES`).
    pub fn check_constraint(&self, constraint: &Constraint) -> Result<(), ConstraintError> {
        let compiler = {
            let mut kept = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
            match kept.as_ref().filter(|compiler| compiler.ends() == constraint.ends) {
                Some(compiler) => compiler.clone(),
                None => {
                    let made = Compiler::new(self.tokenizer.vocabulary(), &constraint.ends)?;
                    kept.insert(Arc::new(made)).clone()
                }
            }
        };
        compiler.compile(constraint).map(drop)
    }

    /// Tokens that end an answer, in ascending order.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Token to put before a raw prompt, if the model wants one. (A template writes its own.)
    pub fn bos(&self) -> Option<u32> {
        self.tokenizer.bos_if_added()
    }

    pub fn vocab(&self) -> u32 {
        self.tokenizer.vocabulary().len()
    }

    /// Bytes that a token stands for; empty for control tokens and for numbers beyond the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.tokenizer.vocabulary().bytes(token)
    }
}
