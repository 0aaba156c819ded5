//! Text to tokens and back: tokenizer, chat template, incremental detokeniser, stop strings.

use caravan_core::error::Refusal;
use caravan_core::gguf::Gguf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
}

/// Everything textual of one model. Immutable, shared.
pub struct TextModel {}

impl TextModel {
    pub fn from_gguf(_gguf: &Gguf) -> anyhow::Result<TextModel> {
        todo!()
    }

    /// Tokens of `text`. `special`: control tokens written out in the text become those tokens.
    pub fn encode(&self, _text: &str, _special: bool) -> Vec<u32> {
        todo!()
    }

    /// The prompt of a conversation, by the model's own template. Errors name `messages`.
    pub fn render_chat(&self, _messages: &[ChatMessage]) -> Result<String, Refusal> {
        todo!()
    }

    /// Tokens that end an answer.
    pub fn stop_tokens(&self) -> &[u32] {
        todo!()
    }

    /// Token to put before a raw prompt, if the model wants one.
    pub fn bos(&self) -> Option<u32> {
        todo!()
    }

    pub fn vocab(&self) -> u32 {
        todo!()
    }

    /// Bytes that a token stands for; empty for control tokens.
    pub fn token_bytes(&self, _token: u32) -> &[u8] {
        todo!()
    }
}

/// Turns tokens into text piece by piece; never splits a character.
#[derive(Default)]
pub struct Detokenizer {}

impl Detokenizer {
    /// Text that has become complete with these bytes.
    pub fn push(&mut self, _bytes: &[u8]) -> String {
        todo!()
    }

    /// What is left at the end; incomplete characters become U+FFFD.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}

/// Finds stop strings in a stream of text; holds back what may be the beginning of one.
pub struct StopMatcher {}

impl StopMatcher {
    pub fn new(_stops: Vec<String>) -> StopMatcher {
        todo!()
    }

    /// Text that may be shown, and whether a stop string was found (nothing is shown after it).
    pub fn push(&mut self, _text: &str) -> (String, bool) {
        todo!()
    }

    /// What was held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}
