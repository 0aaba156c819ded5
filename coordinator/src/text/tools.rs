//! How models are told of tools and how they call them: by the family that the chat template shows, or,
//! where a template knows no tools, in a form of our own.
//!
//! Must never let what a client writes in a tool or a call pass for a control token: everything written
//! here goes through the same guard as messages.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{ChatMessage, Conversation};

/// A call of a tool, as a message holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolStyle {
    /// `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`, as Hermes and Qwen do; also the form
    /// that models without one of their own are told.
    Hermes,
    /// The answer is `{"name": …, "parameters": …}`.
    Llama,
    /// `[TOOL_CALLS]` and a list of `{"name": …, "arguments": …}`.
    Mistral,
}

/// The control token (or text) behind which Mistral's models write calls.
pub const MISTRAL_MARKER: &str = "[TOOL_CALLS]";

impl ToolStyle {
    /// By what the template writes into prompts.
    pub fn of_template(source: &str) -> ToolStyle {
        if source.contains(MISTRAL_MARKER) {
            ToolStyle::Mistral
        } else if source.contains("<|python_tag|>") && !source.contains("<tool_call>") {
            ToolStyle::Llama
        } else {
            ToolStyle::Hermes
        }
    }

    /// Ids as this family's templates take them; Mistral's refuse all but nine letters and digits.
    pub fn id(self, id: &str) -> Cow<'_, str> {
        let nine = id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric());
        match self {
            ToolStyle::Mistral if !nine => {
                let digest = blake3::derive_key("caravan tool call id of nine letters", id.as_bytes());
                const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
                let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
                Cow::Owned(digest.iter().take(9).map(letter).collect())
            }
            _ => Cow::Owned(id.to_owned()),
        }
    }
}

/// What a model is told of tools if its template does not do it, before the tools themselves.
const INTRODUCTION: &str = "You may call functions. To call one, answer with its name and arguments as \
JSON between tags, and with nothing else:\n\
<tool_call>\n{\"name\": \"NAME\", \"arguments\": {}}\n</tool_call>\n\
Write one such block for each call. Results come back as <tool_response>. The functions, with the JSON \
schemas of their arguments:";

/// The conversation as plain messages, for a template that knows no tools: they stand at the end of the
/// system message, calls in the text of assistant messages, results in user messages.
pub(super) fn written_out(conversation: &Conversation) -> Vec<ChatMessage> {
    let mut messages: Vec<ChatMessage> = Vec::new();
    for message in &conversation.messages {
        if message.role == "tool" {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
            // Results of one turn stand in one message: most templates want turns to alternate.
            match messages.last_mut().filter(|last| last.role == "user" && last.tool_call_id.is_some()) {
                Some(last) => last.content = format!("{}\n{text}", last.content),
                None => {
                    let tool_call_id = Some(String::new());
                    messages.push(ChatMessage { tool_call_id, ..ChatMessage::new("user", text) });
                }
            }
            continue;
        }
        let mut content = message.content.clone();
        for call in &message.tool_calls {
            let name = Value::from(call.name.as_str());
            let between = if content.is_empty() { "" } else { "\n" };
            let arguments = &call.arguments;
            content.push_str(between);
            content.push_str(&format!(
                "<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>"
            ));
        }
        messages.push(ChatMessage::new(&message.role, content));
    }
    if !conversation.tools.is_empty() {
        let tools: Vec<String> = conversation.tools.iter().map(Value::to_string).collect();
        let block = format!("{INTRODUCTION}\n{}", tools.join("\n"));
        match messages.first_mut().filter(|first| first.role == "system") {
            Some(first) => first.content = format!("{}\n\n{block}", first.content),
            None => messages.insert(0, ChatMessage::new("system", block)),
        }
    }
    for message in &mut messages {
        message.tool_call_id = None;
    }
    messages
}

/// A tool and a conversation that uses it, to see whether a template shows them.
pub(super) fn probe() -> Conversation {
    let call = ToolCall { id: "call00000".into(), name: PROBE.into(), arguments: "{}".into() };
    let messages = vec![
        ChatMessage::new("user", "hello"),
        ChatMessage { tool_calls: vec![call], ..ChatMessage::new("assistant", "") },
        ChatMessage { tool_call_id: Some("call00000".into()), ..ChatMessage::new("tool", "done") },
    ];
    let parameters = json!({"type": "object", "properties": {}});
    let function = json!({"name": PROBE, "description": "A probe.", "parameters": parameters});
    Conversation { messages, tools: vec![json!({"type": "function", "function": function})] }
}

pub(super) const PROBE: &str = "caravan_probe_of_the_template";
