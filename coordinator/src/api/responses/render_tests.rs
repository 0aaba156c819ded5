//! Responses of reasoning, text and function calls, and that they are a function of their input.

use serde_json::{Map, Value, json};

use super::super::output::Output;
use super::super::shape::Usage;
use super::render::{End, Event, Head, Rendering};

fn head() -> Head {
    let echo = Map::from_iter([("store".to_owned(), json!(false))]);
    Head { request: "00ff".into(), created_s: 7, model: "tiny".into(), echo }
}

fn all(outputs: &[Output]) -> Vec<Event> {
    let mut rendering = Rendering::new(head());
    let mut events = rendering.begin();
    for output in outputs {
        events.extend(rendering.push(output.clone()));
    }
    events.extend(rendering.end(&End::Completed, Usage { prompt: 1, completion: 2 }, 9));
    events
}

fn mixed() -> Vec<Output> {
    vec![
        Output::Reasoning("hm".into()),
        Output::Text("so".into(), Vec::new()),
        Output::Call { name: "f".into() },
        Output::Arguments("{\"a\"".into()),
        Output::Arguments(":1}".into()),
        Output::Call { name: "g".into() },
    ]
}

#[test]
fn every_kind_of_item_is_opened_and_closed() {
    let events = all(&mixed());
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.trim_start_matches("response.")).collect();
    let wanted = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(kinds, wanted);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(
            (&event.body["sequence_number"], &event.body["type"]),
            (&json!(number), &json!(event.kind))
        );
    }
    let output = &events[22].body["response"]["output"];
    let call = json!({
        "id": "fc_00ff0002",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_00ff0002",
        "name": "f",
        "arguments": "{\"a\":1}",
    });
    assert_eq!(output[2], call);
    assert_eq!(output[0]["content"], json!([{"type": "reasoning_text", "text": "hm"}]));
    let done: Vec<&Value> = events
        .iter()
        .filter(|event| event.kind == "response.output_item.done")
        .map(|event| &event.body["item"])
        .collect();
    assert_eq!(done, output.as_array().unwrap().iter().collect::<Vec<_>>());
}

#[test]
fn the_same_input_gives_the_same_events() {
    assert_eq!(all(&mixed()), all(&mixed()));
    // A head that was kept and read again is the same head.
    let kept: Head = serde_json::from_str(&serde_json::to_string(&head()).unwrap()).unwrap();
    assert_eq!(kept, head());
}
