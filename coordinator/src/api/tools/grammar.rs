//! The grammar of an answer that calls tools, in the form of the model's family.
//!
//! Must never put a client's text into a grammar except as a quoted literal or as a schema's JSON.

use std::fmt::Write;

use caravan_core::limits;
use serde_json::{Value, json};

use super::{Tool, ToolMode, Tools};
use crate::text::{MISTRAL_MARKER, ToolStyle};

/// How calls of one family stand in an answer.
struct Form {
    /// Before the first call and behind the last one.
    begin: String,
    end: &'static str,
    /// Around each call's JSON, and between two calls.
    open: &'static str,
    close: &'static str,
    between: &'static str,
    /// The key of the arguments.
    arguments: &'static str,
}

/// How free text comes before calls.
enum Lead {
    /// Any text, up to this.
    Until(&'static str),
    /// The answer is a call if it begins with a brace.
    Brace,
    /// Any text, up to this control token.
    Token(u32),
}

/// `marker`: the control token that opens calls, if the family has one and the model has it.
fn form(style: ToolStyle, marker: Option<u32>) -> (Form, Lead) {
    let plain =
        Form { begin: String::new(), end: "", open: "", close: "", between: "", arguments: "arguments" };
    match (style, marker) {
        (ToolStyle::Hermes, _) => {
            let form = Form { open: "<tool_call>\n", close: "\n</tool_call>", between: "\n", ..plain };
            (form, Lead::Until("<tool_call>"))
        }
        (ToolStyle::Llama, _) => (Form { between: "; ", arguments: "parameters", ..plain }, Lead::Brace),
        (ToolStyle::Mistral, Some(token)) => {
            let begin = format!("<[{token}]> \"[\"");
            (Form { begin, end: "]", between: ", ", ..plain }, Lead::Token(token))
        }
        (ToolStyle::Mistral, None) => {
            let begin = literal(&format!("{MISTRAL_MARKER}["));
            (Form { begin, end: "]", between: ", ", ..plain }, Lead::Until(MISTRAL_MARKER))
        }
    }
}

/// `text` as a literal of the grammar; nothing for nothing.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
}

/// The arguments' schema: an object, with our options.
fn schema(tool: &Tool) -> Value {
    let nothing = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let mut schema = tool.parameters.clone().unwrap_or_else(nothing);
    if let Some(map) = schema.as_object_mut() {
        let combined = ["type", "anyOf", "allOf", "oneOf", "$ref", "enum", "const"];
        if !combined.iter().any(|key| map.contains_key(*key)) {
            map.insert("type".into(), json!("object"));
        }
    }
    caravan_constraint::embedded(schema, !tool.strict)
}

/// The grammar of the answer, in Lark's notation; `None` if anything goes: tools that may be called
/// and need not, none of them strict. `content`: schema of an answer that calls none.
pub fn grammar(
    tools: &Tools,
    style: ToolStyle,
    marker: Option<u32>,
    content: Option<Value>,
) -> Option<String> {
    let callable = tools.callable();
    let free = tools.mode == ToolMode::Auto && content.is_none();
    if callable.is_empty() || (free && !callable.iter().any(|tool| tool.strict)) {
        return None;
    }
    let (form, lead) = form(style, marker);
    let (open, close, between) = (literal(form.open), literal(form.close), literal(form.between));
    let more = limits::TOOL_CALLS - 1;
    let more = if tools.parallel { format!("({between} call){{0,{more}}}") } else { String::new() };
    let mut out = String::from("%llguidance {}\n");
    let begin = &form.begin;
    let end = literal(form.end);
    let start = match (tools.mode, content.is_some()) {
        (ToolMode::Required, _) => format!("start: {begin} call {more} {end}\n"),
        (_, true) => format!("start: content | {begin} call {more} {end}\n"),
        (_, false) => led(&lead, &form, &more),
    };
    out.push_str(&start);
    let bodies: Vec<String> = (0..callable.len()).map(|i| format!("body_{i}")).collect();
    let _ = writeln!(out, "call: {open} body {close}");
    let _ = writeln!(out, "body: {}", bodies.join(" | "));
    for (i, tool) in callable.iter().enumerate() {
        let head = format!("{{\"name\": {}, \"{}\": ", Value::from(tool.name.as_str()), form.arguments);
        let _ = writeln!(out, "body_{i}: {} args_{i} {}", literal(&head), literal("}"));
        let _ = writeln!(out, "args_{i}: %json {}", schema(tool));
    }
    if let Some(content) = content {
        let _ = writeln!(out, "content: %json {content}");
    }
    Some(out)
}

/// Free text, or free text and calls behind it.
fn led(lead: &Lead, form: &Form, more: &str) -> String {
    let (close, end) = (literal(form.close), literal(form.end));
    match lead {
        Lead::Until(marker) => {
            // The marker belongs to the text before it; what follows it is the rest of the opening.
            let rest = match form.open.strip_prefix(marker) {
                Some(rest) => literal(rest),
                None => literal("["),
            };
            format!(
                "start: TEXT | head {rest} body {close} {more} {end}\nhead[lazy]: TEXT {}\nTEXT: /(.|\\n)*/\n",
                literal(marker)
            )
        }
        Lead::Brace => format!("start: PLAIN | call {more}\nPLAIN: /([^{{](.|\\n)*)?/\n"),
        Lead::Token(token) => {
            format!("start: TEXT | TEXT <[{token}]> \"[\" call {more} {end}\nTEXT: /(.|\\n)*/\n")
        }
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
