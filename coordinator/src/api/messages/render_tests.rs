//! Messages of thinking, text and tool calls.

use serde_json::{Value, json};

use super::super::output::Output;
use super::super::shape::Usage;
use super::render::{Head, Rendering, Stop};

#[test]
fn every_kind_of_block_is_opened_and_closed() {
    let head = Head { request: "00ff".into(), model: "tiny".into(), prompt_tokens: 3 };
    let mut rendering = Rendering::new(head);
    let mut events = rendering.begin();
    let outputs = [
        Output::Reasoning("hm".into()),
        Output::Text("so".into(), Vec::new()),
        Output::Call { name: "f".into() },
        Output::Arguments("{\"a\"".into()),
        Output::Arguments(":1}".into()),
        Output::Call { name: "g".into() },
    ];
    for output in outputs {
        events.extend(rendering.push(output));
    }
    let usage = Usage { prompt: 3, completion: 4 };
    events.extend(rendering.end(&Stop::EndTurn, usage));
    let told = |event: &Value| {
        let kind = event["type"].as_str().unwrap();
        event["index"].as_u64().map_or(kind.to_owned(), |index| format!("{kind} {index}"))
    };
    let wanted = [
        "message_start",
        "ping",
        "content_block_start 0",
        "content_block_delta 0",
        "content_block_stop 0",
        "content_block_start 1",
        "content_block_delta 1",
        "content_block_stop 1",
        "content_block_start 2",
        "content_block_delta 2",
        "content_block_delta 2",
        "content_block_stop 2",
        "content_block_start 3",
        "content_block_stop 3",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(events.iter().map(told).collect::<Vec<_>>(), wanted);
    assert_eq!(events[14]["delta"]["stop_reason"], "tool_use");
    let content = rendering.whole(&Stop::EndTurn, usage)["content"].clone();
    let wanted = json!([
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "toolu_00ff0002", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_00ff0003", "name": "g", "input": {}},
    ]);
    assert_eq!(content, wanted);
}
