//! Templates of the common families' constructs, and those of real files, against the real Jinja2: what it made
//! of every conversation is in `testdata/templates`, written by the script that is there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use caravan_core::gguf::Gguf;
use serde_json::{Value, json};

use super::template::render_any;

const CONVERSATIONS: &str = include_str!("testdata/templates/conversations.json");

fn source(name: &str) -> &'static str {
    match name {
        "alternating" => include_str!("testdata/templates/alternating.jinja"),
        "brackets" => include_str!("testdata/templates/brackets.jinja"),
        "headers" => include_str!("testdata/templates/headers.jinja"),
        "parts" => include_str!("testdata/templates/parts.jinja"),
        "plain" => include_str!("testdata/templates/plain.jinja"),
        "tagged" => include_str!("testdata/templates/tagged.jinja"),
        "thinking" => include_str!("testdata/templates/thinking.jinja"),
        "turns" => include_str!("testdata/templates/turns.jinja"),
        other => panic!("{other}"),
    }
}

/// `lines`: template, conversation, whether the answer is to begin, text or null.
fn check<'a>(lines: &str, tokens: [&str; 2], source: impl Fn(&str) -> &'a str) -> usize {
    let conversations: Vec<Value> = serde_json::from_str(CONVERSATIONS).unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for line in lines.lines() {
        let (name, index, generate, wanted): (String, usize, bool, Option<String>) =
            serde_json::from_str(line).unwrap();
        let mut values = json!({
            "tools": null, "documents": null, "bos_token": tokens[0], "eos_token": tokens[1],
            "add_generation_prompt": generate,
        });
        for (key, value) in conversations[index].as_object().unwrap() {
            values[key] = value.clone();
        }
        let found = render_any(source(&name), &values);
        count += 1;
        if found.as_ref().ok() != wanted.as_ref() {
            wrong.push(format!("{name} {index} {generate}\n  wanted {wanted:?}\n  found  {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    count
}

#[test]
fn templates_give_the_text_that_jinja_gives() {
    let lines = include_str!("testdata/templates/rendered.jsonl");
    assert!(check(lines, ["<|endoftext|>", "<|im_end|>"], source) > 350);
}

/// The template of a file that the environment names, with its first and last token.
fn of_file(variable: &str) -> Option<[String; 3]> {
    let Some(path) = std::env::var_os(variable) else {
        eprintln!("skipped: {variable} does not name a model file");
        return None;
    };
    let bytes = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    let tokens = gguf.metadata["tokenizer.ggml.tokens"].as_texts().unwrap();
    let token = |end: &str| {
        let id = gguf.metadata[&format!("tokenizer.ggml.{end}_token_id")].as_u64().unwrap();
        tokens.get(id as usize).unwrap().to_owned()
    };
    let template = gguf.metadata["tokenizer.chat_template"].as_text().unwrap().to_owned();
    Some([template, token("bos"), token("eos")])
}

#[test]
fn the_template_of_the_real_file_gives_the_text_that_jinja_gives() {
    let Some([template, bos, eos]) = of_file("CARAVAN_TEST_MODEL") else { return };
    let lines = include_str!("testdata/templates/rendered-smollm2.jsonl");
    assert!(check(lines, [&bos, &eos], |_| &template) > 40);
}
