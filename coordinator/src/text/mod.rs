//! Text to tokens and back: tokenizer, chat template, incremental detokeniser, stop strings.
//!
//! Must never let one request's text cost more than its length deserves, nor let what a client writes
//! inside a message pass for a control token.

mod bytes;
mod detok;
mod json;
mod keys;
mod merges;
mod normal;
mod pieces;
mod special;
mod split;
mod stages;
mod template;
mod tokenizer;

#[cfg(test)]
mod corpus_tests;
#[cfg(test)]
mod detok_tests;
#[cfg(test)]
mod folder_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod pieces_tests;
#[cfg(test)]
mod rendered_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod template_tests;
#[cfg(test)]
mod vocabulary_tests;

use anyhow::Context;
use caravan_core::error::Refusal;
use caravan_core::gguf::Gguf;

pub use detok::{Detokenizer, StopMatcher};
use template::ChatTemplate;
use tokenizer::{Encoding, Tokenizer};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
}

/// Everything textual of one model. Immutable, shared.
pub struct TextModel {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    stop_tokens: Vec<u32>,
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
        Ok(TextModel { tokenizer, template, stop_tokens })
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
    pub fn render_chat(&self, messages: &[ChatMessage]) -> Result<String, Refusal> {
        self.template.render(messages)
    }

    /// Tokens of a conversation's prompt. Control tokens that stand in a message (its role or content)
    /// are plain text: only the template's own become control tokens.
    pub fn prompt_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, Refusal> {
        self.prompt_tokens_within(messages, usize::MAX)
    }

    /// As `prompt_tokens`; refuses a prompt of more than `most` tokens (`context_length_exceeded`)
    /// without computing the rest of them.
    pub fn prompt_tokens_within(&self, messages: &[ChatMessage], most: usize) -> Result<Vec<u32>, Refusal> {
        let guarded = special::guard(messages, self.tokenizer.special(), self.template.source())?;
        let text = self.template.render(&guarded.messages)?;
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

    /// Tokens that end an answer, in ascending order.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Token to put before a raw prompt, if the model wants one. (A template writes its own.)
    pub fn bos(&self) -> Option<u32> {
        self.tokenizer.bos_if_added()
    }

    pub fn vocab(&self) -> u32 {
        self.tokenizer.vocab()
    }

    /// Bytes that a token stands for; empty for control tokens and for numbers beyond the vocabulary.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.tokenizer.token_bytes(token)
    }
}
