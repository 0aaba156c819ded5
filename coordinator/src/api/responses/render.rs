//! A response as OpenAI shapes it: its object and its typed events, from a head and what was generated.
//!
//! A pure function of its input: the same head and the same output in the same pieces give the same events
//! with the same ids and sequence numbers, on any node and at any time. Must never read a clock, make up an
//! id, or know how the output came about.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::chat::logprob;
use super::super::output::Output;
use super::super::shape::Usage;

/// What a response knows before its first token. Enough, with the output, to render all of it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Unique over the cluster; the ids of the response and of its items are made from it.
    pub request: String,
    /// Seconds since 1970.
    pub created_s: u64,
    pub model: String,
    /// What the object repeats of the request, with defaults filled in.
    pub echo: Map<String, Value>,
}

impl Head {
    pub fn id(&self) -> String {
        format!("resp_{}", self.request)
    }

    /// The id of the item at `index` of the output.
    fn item_id(&self, kind: Kind, index: usize) -> String {
        format!("{}_{}{index:04x}", kind.prefix(), self.request)
    }
}

/// How a response ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Completed,
    /// Cut off at `max_output_tokens` or the end of the context.
    Incomplete,
    /// With the code and the message of the error.
    Failed(String, String),
}

/// One typed event. `body` holds its `type` and `sequence_number` too.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub kind: &'static str,
    pub body: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call => "fc",
        }
    }
}

/// The item that grows.
struct Open {
    kind: Kind,
    text: String,
    logprobs: Vec<Value>,
    /// Of a function call.
    name: String,
}

/// A response while it is rendered.
pub struct Rendering {
    head: Head,
    /// Of the next event.
    sequence: u64,
    done: Vec<Value>,
    open: Option<Open>,
}

impl Rendering {
    pub fn new(head: Head) -> Rendering {
        Rendering { head, sequence: 0, done: Vec::new(), open: None }
    }

    /// The events before any output.
    pub fn begin(&mut self) -> Vec<Event> {
        let body = self.object("in_progress", None);
        ["response.created", "response.in_progress"]
            .map(|kind| self.event(kind, json!({"response": body})))
            .into()
    }

    /// The events of one more piece of output. Empty text gives none.
    pub fn push(&mut self, output: Output) -> Vec<Event> {
        match output {
            Output::Reasoning(text) => self.grow(Kind::Reasoning, text, Vec::new()),
            Output::Text(text, tokens) => {
                self.grow(Kind::Message, text, tokens.iter().map(logprob).collect())
            }
            Output::Arguments(text) => self.grow(Kind::Call, text, Vec::new()),
            Output::Call { name } => {
                let mut events = self.close("completed");
                events.extend(self.open(Kind::Call, name));
                events
            }
        }
    }

    /// The last events. `completed_s`: seconds since 1970.
    pub fn end(&mut self, end: &End, usage: Usage, completed_s: u64) -> Vec<Event> {
        let mut events = Vec::new();
        // An answer without any text is still an answer.
        if self.done.is_empty() && self.open.is_none() && !matches!(end, End::Failed(..)) {
            events.extend(self.open(Kind::Message, String::new()));
        }
        let (status, kind) = match end {
            End::Completed => ("completed", "response.completed"),
            End::Incomplete => ("incomplete", "response.incomplete"),
            End::Failed(..) => ("failed", "response.failed"),
        };
        events.extend(self.close(if *end == End::Completed { "completed" } else { "incomplete" }));
        let mut body = self.object(status, Some(usage));
        match end {
            End::Completed => body["completed_at"] = json!(completed_s),
            End::Incomplete => body["incomplete_details"] = json!({"reason": "max_output_tokens"}),
            End::Failed(code, message) => body["error"] = json!({"code": code, "message": message}),
        }
        events.push(self.event(kind, json!({"response": body})));
        events
    }

    /// The response object, with the output that is complete.
    fn object(&self, status: &str, usage: Option<Usage>) -> Value {
        let mut body = json!({
            "id": self.head.id(),
            "object": "response",
            "created_at": self.head.created_s,
            "completed_at": null,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": self.head.model,
            "output": self.done,
        });
        if let Some(body) = body.as_object_mut() {
            body.extend(self.head.echo.clone());
        }
        body["usage"] = usage.map_or(Value::Null, usage_json);
        body
    }

    fn event(&mut self, kind: &'static str, fields: Value) -> Event {
        let mut body = json!({"type": kind, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
            body.extend(fields);
        }
        Event { kind, body }
    }

    /// Where an event of the item that grows belongs.
    fn place(&self, kind: Kind) -> Value {
        let index = self.done.len();
        let mut place = json!({"item_id": self.head.item_id(kind, index), "output_index": index});
        if kind != Kind::Call {
            place["content_index"] = json!(0);
        }
        place
    }

    /// An event of the item that grows, with one more field.
    fn item_event(&mut self, name: &'static str, kind: Kind, field: &str, value: Value) -> Event {
        let mut fields = self.place(kind);
        fields[field] = value;
        if field == "text" && kind == Kind::Message {
            let logprobs = self.open.as_ref().map(|open| open.logprobs.clone()).unwrap_or_default();
            fields["logprobs"] = json!(logprobs);
        }
        self.event(name, fields)
    }

    fn open(&mut self, kind: Kind, name: String) -> Vec<Event> {
        let open = Open { kind, text: String::new(), logprobs: Vec::new(), name };
        let mut item = self.item(&open, "in_progress");
        let part = part(&open);
        if kind != Kind::Call {
            item["content"] = json!([]);
        }
        self.open = Some(open);
        let index = self.done.len();
        let added = json!({"output_index": index, "item": item});
        let mut events = vec![self.event("response.output_item.added", added)];
        if let Some(part) = part {
            events.push(self.item_event("response.content_part.added", kind, "part", part));
        }
        events
    }

    fn grow(&mut self, kind: Kind, text: String, logprobs: Vec<Value>) -> Vec<Event> {
        let mut events = Vec::new();
        if text.is_empty() && logprobs.is_empty() {
            return events;
        }
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            events.extend(self.close("completed"));
            events.extend(self.open(kind, String::new()));
        }
        if let Some(open) = &mut self.open {
            open.text.push_str(&text);
            open.logprobs.extend(logprobs.iter().cloned());
        }
        let name = match kind {
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Message => "response.output_text.delta",
            Kind::Call => "response.function_call_arguments.delta",
        };
        let mut fields = self.place(kind);
        fields["delta"] = json!(text);
        if kind == Kind::Message {
            fields["logprobs"] = json!(logprobs);
        }
        events.push(self.event(name, fields));
        events
    }

    /// Completes the item that grows, if there is one.
    fn close(&mut self, status: &str) -> Vec<Event> {
        let Some(open) = &self.open else { return Vec::new() };
        let kind = open.kind;
        let (item, part) = (self.item(open, status), part(open));
        let (name, field) = match kind {
            Kind::Reasoning => ("response.reasoning_text.done", "text"),
            Kind::Message => ("response.output_text.done", "text"),
            Kind::Call => ("response.function_call_arguments.done", "arguments"),
        };
        let (text, function) = (open.text.clone(), open.name.clone());
        let mut done = self.item_event(name, kind, field, json!(text));
        if kind == Kind::Call {
            done.body["name"] = json!(function);
        }
        let mut events = vec![done];
        if let Some(part) = part {
            events.push(self.item_event("response.content_part.done", kind, "part", part));
        }
        let fields = json!({"output_index": self.done.len(), "item": item});
        events.push(self.event("response.output_item.done", fields));
        self.open = None;
        self.done.push(item);
        events
    }

    fn item(&self, open: &Open, status: &str) -> Value {
        let index = self.done.len();
        let id = self.head.item_id(open.kind, index);
        match open.kind {
            Kind::Reasoning => {
                json!({"id": id, "type": "reasoning", "summary": [], "content": [part(open)], "status": status})
            }
            Kind::Message => json!({
                "id": id,
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [part(open)],
            }),
            Kind::Call => json!({
                "id": id,
                "type": "function_call",
                "status": status,
                "call_id": format!("call_{}{index:04x}", self.head.request),
                "name": open.name,
                "arguments": open.text,
            }),
        }
    }
}

/// The one content part of an item, with its text so far.
fn part(open: &Open) -> Option<Value> {
    match open.kind {
        Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": open.text})),
        Kind::Message => Some(json!({
            "type": "output_text",
            "text": open.text,
            "annotations": [],
            "logprobs": open.logprobs,
        })),
        Kind::Call => None,
    }
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    })
}
