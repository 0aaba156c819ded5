//! A message as Anthropic shapes it: its object and its events, from what was generated.
//!
//! A pure function of its input. Must never read a clock, make up an id, or know how the output came about.

use serde_json::{Value, json};

use super::super::output::Output;
use super::super::shape::Usage;

/// What is known before the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Unique over the cluster; the ids of the message and of its tool calls are made from it.
    pub request: String,
    pub model: String,
    pub prompt_tokens: u64,
}

/// How a message ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    EndTurn,
    MaxTokens,
    Sequence(String),
}

/// A block of content.
enum Block {
    Thinking(String),
    Text(String),
    ToolUse { id: String, name: String, arguments: String },
}

impl Block {
    fn is_like(&self, output: &Output) -> bool {
        matches!(
            (self, output),
            (Block::Thinking(_), Output::Reasoning(_))
                | (Block::Text(_), Output::Text(..))
                | (Block::ToolUse { .. }, Output::Arguments(_))
        )
    }

    fn json(&self) -> Value {
        match self {
            Block::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Block::Text(text) => json!({"type": "text", "text": text}),
            Block::ToolUse { id, name, arguments } => {
                // Arguments are cut off only with the message.
                let input = serde_json::from_str(arguments).ok().filter(Value::is_object);
                json!({"type": "tool_use", "id": id, "name": name, "input": input.unwrap_or(json!({}))})
            }
        }
    }

    fn grow(&mut self, more: &str) {
        match self {
            Block::Thinking(text) | Block::Text(text) | Block::ToolUse { arguments: text, .. } => {
                text.push_str(more);
            }
        }
    }
}

/// A message while it is rendered.
pub struct Rendering {
    head: Head,
    blocks: Vec<Block>,
    /// The last block may still grow.
    open: bool,
}

impl Rendering {
    pub fn new(head: Head) -> Rendering {
        Rendering { head, blocks: Vec::new(), open: false }
    }

    /// The events before any output.
    pub fn begin(&self) -> Vec<Value> {
        let usage = Usage { prompt: self.head.prompt_tokens, completion: 0 };
        let message = self.message(None, usage);
        vec![json!({"type": "message_start", "message": message}), json!({"type": "ping"})]
    }

    /// The events of one more piece of output. Empty text gives none.
    pub fn push(&mut self, output: Output) -> Vec<Value> {
        let mut events = Vec::new();
        let like = self.open && self.blocks.last().is_some_and(|block| block.is_like(&output));
        let (fresh, text, kind, field) = match output {
            Output::Reasoning(text) => (Block::Thinking(String::new()), text, "thinking_delta", "thinking"),
            Output::Text(text, _) => (Block::Text(String::new()), text, "text_delta", "text"),
            Output::Arguments(text) => {
                (self.tool_use(String::new()), text, "input_json_delta", "partial_json")
            }
            Output::Call { name } => {
                events.extend(self.close());
                events.push(self.start(self.tool_use(name)));
                return events;
            }
        };
        if text.is_empty() {
            return events;
        }
        if !like {
            events.extend(self.close());
            events.push(self.start(fresh));
        }
        if let Some(block) = self.blocks.last_mut() {
            block.grow(&text);
        }
        let delta = json!({"type": kind, field: text});
        events.push(json!({"type": "content_block_delta", "index": self.last(), "delta": delta}));
        events
    }

    /// The last events.
    pub fn end(&mut self, stop: &Stop, usage: Usage) -> Vec<Value> {
        let mut events = Vec::new();
        if self.blocks.is_empty() {
            events.push(self.start(Block::Text(String::new())));
        }
        events.extend(self.close());
        let (reason, sequence) = self.reason(stop);
        events.push(json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_json(usage),
        }));
        events.push(json!({"type": "message_stop"}));
        events
    }

    /// The whole message. One without any text has one empty block, as its stream has.
    pub fn whole(&mut self, stop: &Stop, usage: Usage) -> Value {
        self.end(stop, usage);
        self.message(Some(stop), usage)
    }

    fn message(&self, stop: Option<&Stop>, usage: Usage) -> Value {
        let (reason, sequence) = stop.map(|stop| self.reason(stop)).unzip();
        json!({
            "id": format!("msg_{}", self.head.request),
            "type": "message",
            "role": "assistant",
            "model": self.head.model,
            "content": self.blocks.iter().map(Block::json).collect::<Vec<Value>>(),
            "stop_reason": reason,
            "stop_sequence": sequence.flatten(),
            "usage": usage_json(usage),
        })
    }

    fn reason(&self, stop: &Stop) -> (&'static str, Option<String>) {
        match stop {
            Stop::MaxTokens => ("max_tokens", None),
            Stop::Sequence(text) => ("stop_sequence", Some(text.clone())),
            Stop::EndTurn if matches!(self.blocks.last(), Some(Block::ToolUse { .. })) => ("tool_use", None),
            Stop::EndTurn => ("end_turn", None),
        }
    }

    fn tool_use(&self, name: String) -> Block {
        let id = format!("toolu_{}{:04x}", self.head.request, self.blocks.len());
        Block::ToolUse { id, name, arguments: String::new() }
    }

    fn last(&self) -> usize {
        self.blocks.len().saturating_sub(1)
    }

    fn start(&mut self, block: Block) -> Value {
        let json = block.json();
        self.blocks.push(block);
        self.open = true;
        json!({"type": "content_block_start", "index": self.last(), "content_block": json})
    }

    fn close(&mut self) -> Option<Value> {
        let closed = std::mem::take(&mut self.open);
        closed.then(|| json!({"type": "content_block_stop", "index": self.last()}))
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    })
}
