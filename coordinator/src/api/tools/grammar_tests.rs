//! Grammars of tool calls, walked over texts that they must and must not allow.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use caravan_constraint::{Compiled, Compiler};
use caravan_core::gguf::Vocabulary;
use caravan_core::request::{Constraint, ConstraintKind};

use super::*;

const END: u32 = 256;
const MARKER: u32 = 257;

fn tool(name: &str, strict: bool) -> Tool {
    let parameters = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/small"}}, "required": ["a"],
        "additionalProperties": false, "$defs": {"small": {"enum": [1, "two"]}}});
    Tool { name: name.into(), description: None, parameters: Some(parameters), strict, field: String::new() }
}

fn tools(mode: ToolMode, strict: bool, parallel: bool) -> Tools {
    let bare = Tool { parameters: None, ..tool("none", strict) };
    Tools { list: vec![tool("add", strict), bare], mode, allowed: None, parallel }
}

fn compiled(text: String) -> Compiled {
    let bytes = (0u8..=255).map(|byte| Ok(vec![byte]));
    let control = ["<|end|>", MISTRAL_MARKER].map(|name| Err(name.to_owned()));
    let vocabulary = Vocabulary::new(bytes.chain(control));
    let constraint = Constraint { kind: ConstraintKind::Lark, text, ends: vec![END], control: vec![MARKER] };
    Compiler::new(&vocabulary, &[END]).unwrap().compile(&constraint).unwrap()
}

/// Bytes of `text` that are allowed one after the other (`§` is the marker), and whether it may end there.
fn walk(compiled: &Compiled, text: &str) -> (String, bool) {
    let mut walk = compiled.begin();
    for (at, character) in text.char_indices() {
        let tokens: Vec<u32> = match character {
            '§' => vec![MARKER],
            other => other.to_string().bytes().map(u32::from).collect(),
        };
        for token in tokens {
            if !walk.allowed().unwrap().contains(token) {
                return (text[..at].to_owned(), false);
            }
            walk.advance(token).unwrap();
        }
    }
    (text.to_owned(), walk.allowed().unwrap().contains(END))
}

fn whole(compiled: &Compiled, text: &str) {
    assert_eq!(walk(compiled, text), (text.to_owned(), true));
}

fn stops_at(compiled: &Compiled, text: &str, at: &str) {
    assert_eq!(walk(compiled, text).0, at);
}

const HERMES: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";

#[test]
fn a_required_call_has_its_familys_form_and_fits_its_schema() {
    let hermes = grammar(&tools(ToolMode::Required, false, true), ToolStyle::Hermes, None, None).unwrap();
    let hermes = compiled(hermes);
    whole(&hermes, HERMES);
    whole(&hermes, &format!("{HERMES}\n{HERMES}"));
    whole(&hermes, "<tool_call>\n{\"name\": \"none\", \"arguments\": {}}\n</tool_call>");
    stops_at(&hermes, "Hello", "");
    stops_at(&hermes, &HERMES.replace("add", "sub"), "<tool_call>\n{\"name\": \"");
    stops_at(
        &hermes,
        &HERMES.replace(": 1", ": 2"),
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": ",
    );
    let llama = grammar(&tools(ToolMode::Required, false, true), ToolStyle::Llama, None, None).unwrap();
    let one = "{\"name\": \"add\", \"parameters\": {\"a\": \"two\"}}";
    whole(&compiled(llama.clone()), one);
    whole(&compiled(llama), &format!("{one}; {one}"));
    for (marker, begin) in [(None, MISTRAL_MARKER), (Some(MARKER), "§")] {
        let mistral =
            grammar(&tools(ToolMode::Required, true, true), ToolStyle::Mistral, marker, None).unwrap();
        let call = "{\"name\": \"add\", \"arguments\": {\"a\": 1}}";
        whole(&compiled(mistral.clone()), &format!("{begin}[{call}]"));
        whole(&compiled(mistral), &format!("{begin}[{call}, {call}]"));
    }
}

#[test]
fn not_more_than_one_call_if_so_asked() {
    let one = grammar(&tools(ToolMode::Required, false, false), ToolStyle::Hermes, None, None).unwrap();
    let one = compiled(one);
    whole(&one, HERMES);
    stops_at(&one, &format!("{HERMES}\n"), HERMES);
    let named = Tools { allowed: Some(vec!["none".into()]), ..tools(ToolMode::Required, false, true) };
    let named = compiled(grammar(&named, ToolStyle::Hermes, None, None).unwrap());
    stops_at(&named, HERMES, "<tool_call>\n{\"name\": \"");
}

#[test]
fn a_strict_tool_lets_text_be_text_until_a_call_begins() {
    assert_eq!(grammar(&tools(ToolMode::Auto, false, true), ToolStyle::Hermes, None, None), None);
    assert_eq!(grammar(&tools(ToolMode::None, true, true), ToolStyle::Hermes, None, None), None);
    let auto =
        |style, marker| compiled(grammar(&tools(ToolMode::Auto, true, true), style, marker, None).unwrap());
    let hermes = auto(ToolStyle::Hermes, None);
    whole(&hermes, "Any text < at all.\n");
    whole(&hermes, HERMES);
    whole(&hermes, &format!("I will add.\n{HERMES}\n{HERMES}"));
    stops_at(&hermes, "Well <tool_call>{", "Well <tool_call>");
    stops_at(
        &hermes,
        &HERMES.replace(": 1", ": 3"),
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": ",
    );
    let llama = auto(ToolStyle::Llama, None);
    whole(&llama, "Any {text}");
    whole(&llama, "{\"name\": \"none\", \"parameters\": {}}");
    stops_at(&llama, "{\"x\"", "{\"");
    let mistral = auto(ToolStyle::Mistral, Some(MARKER));
    whole(&mistral, "Any text");
    whole(&mistral, "So: §[{\"name\": \"none\", \"arguments\": {}}]");
    stops_at(&mistral, "§x", "§");
    let mistral = auto(ToolStyle::Mistral, None);
    whole(&mistral, "So: [TOOL_CALLS][{\"name\": \"none\", \"arguments\": {}}]");
    stops_at(&mistral, "[TOOL_CALLS]x", "[TOOL_CALLS]");
}

#[test]
fn an_answer_without_a_call_has_its_own_form() {
    let content = caravan_constraint::embedded(
        json!({"type": "object", "required": ["x"],
        "properties": {"x": {"type": "boolean"}}, "additionalProperties": false}),
        false,
    );
    let text = grammar(&tools(ToolMode::Auto, false, true), ToolStyle::Hermes, None, Some(content)).unwrap();
    let both = compiled(text);
    whole(&both, HERMES);
    whole(&both, "{\"x\": true}");
    stops_at(&both, "x", "");
}

#[test]
fn a_clients_text_stays_inside_its_literal() {
    let mut evil = tools(ToolMode::Required, true, true);
    evil.list[0].name = "a\" | \"b\nstart: \"c".into();
    evil.list[0].parameters = Some(json!({"const": "%json } \" \n start: \"x\""}));
    let text = grammar(&evil, ToolStyle::Hermes, None, None).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("start:")).count(), 1, "{text}");
    let compiled = compiled(text);
    stops_at(&compiled, "b", "");
    stops_at(&compiled, "c", "");
}
