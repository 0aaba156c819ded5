//! Calls in text, however it is cut.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

/// Text, and (name, arguments) of every call, pushed in pieces that end at `cuts`.
fn parse(style: ToolStyle, text: &str, cuts: &[usize], parallel: bool) -> (String, Vec<(String, String)>) {
    let names = vec!["add".to_owned(), "none".to_owned()];
    let mut parser = CallParser::new(style, names, parallel, "r-0");
    let mut cuts: Vec<usize> =
        cuts.iter().map(|cut| text.floor_char_boundary(cut % (text.len() + 1))).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    let mut all = Parsed::default();
    let pieces = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]);
    let mut parts: Vec<Parsed> = pieces.map(|piece| parser.push(piece)).collect();
    parts.push(parser.finish());
    let mut calls: Vec<(String, String)> = Vec::new();
    for part in parts {
        all.text.push_str(&part.text);
        for call in part.calls {
            if let Some(head) = call.head {
                assert_eq!((call.index, head.id), (calls.len(), call_id("r-0", calls.len())));
                calls.push((head.name, String::new()));
            }
            calls[call.index].1.push_str(&call.arguments);
        }
    }
    assert_eq!(parser.called(), !calls.is_empty());
    (all.text, calls)
}

/// Style, text of the answer, text that is shown, calls.
type Case = (ToolStyle, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const CASES: &[Case] = &[
    (ToolStyle::Hermes, "hello", "hello", &[]),
    (ToolStyle::Hermes, "", "", &[]),
    (ToolStyle::Hermes, " \n ", " \n ", &[]),
    (
        ToolStyle::Hermes,
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"}\\\"{\", \"b\": [1, {}]}}\n</tool_call>",
        "",
        &[("add", "{\"a\": \"}\\\"{\", \"b\": [1, {}]}")],
    ),
    (
        ToolStyle::Hermes,
        "So be it.\n\n<tool_call>{\"arguments\":{ },\"name\":\"none\"}</tool_call>\n<tool_call>\n{\"name\": \"add\"}\n</tool_call>\n",
        "So be it.",
        &[("none", "{ }"), ("add", "{}")],
    ),
    // Other keys are passed over, whatever they hold.
    (
        ToolStyle::Hermes,
        "<tool_call>{\"id\": 7, \"x\": {\"name\": \"z\"}, \"name\": \"add\", \"y\": null, \"arguments\": {\"a\": 1}}</tool_call>",
        "",
        &[("add", "{\"a\": 1}")],
    ),
    // What only looks like a call is text.
    (ToolStyle::Hermes, "a <tool_call>nonsense</tool_call> b", "a <tool_call>nonsense</tool_call> b", &[]),
    (
        ToolStyle::Hermes,
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        &[],
    ),
    (
        ToolStyle::Hermes,
        "<tool_call>{\"name\": \"add\", \"arguments\": 3}",
        "<tool_call>{\"name\": \"add\", \"arguments\": 3}",
        &[],
    ),
    (ToolStyle::Hermes, "a < b <tool", "a < b <tool", &[]),
    // Cut off: what came of the arguments is kept.
    (
        ToolStyle::Hermes,
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": \"é",
        "",
        &[("add", "{\"a\": \"é")],
    ),
    (ToolStyle::Hermes, "<tool_call>{\"name\": \"ad", "<tool_call>{\"name\": \"ad", &[]),
    (ToolStyle::Llama, "{\"name\": \"add\", \"parameters\": {\"a\": 1}}", "", &[("add", "{\"a\": 1}")]),
    (
        ToolStyle::Llama,
        "\n{\"name\": \"add\", \"parameters\": {\"a\": 1}}; {\"name\": \"none\", \"parameters\": {}}",
        "",
        &[("add", "{\"a\": 1}"), ("none", "{}")],
    ),
    (ToolStyle::Llama, "{\"answer\": 42}", "{\"answer\": 42}", &[]),
    (ToolStyle::Llama, "it is {\"name\": \"add\"}", "it is {\"name\": \"add\"}", &[]),
    (
        ToolStyle::Mistral,
        "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 1}}, {\"name\": \"none\", \"arguments\": {}}]",
        "",
        &[("add", "{\"a\": 1}"), ("none", "{}")],
    ),
    (ToolStyle::Mistral, "no [TOOLS] here", "no [TOOLS] here", &[]),
];

#[test]
fn calls_are_found_and_text_is_kept() {
    for (style, text, shown, calls) in CASES {
        let (got, found) = parse(*style, text, &[], true);
        let wanted: Vec<(String, String)> =
            calls.iter().map(|(n, a)| (n.to_string(), a.to_string())).collect();
        assert_eq!((got.as_str(), found), (*shown, wanted), "{text}");
    }
}

#[test]
fn behind_the_only_call_nothing_counts() {
    let text =
        "<tool_call>{\"name\": \"none\"}</tool_call><tool_call>{\"name\": \"none\"}</tool_call> and more";
    let (shown, calls) = parse(ToolStyle::Hermes, text, &[], false);
    assert_eq!((shown.as_str(), calls.len()), ("", 1));
}

#[test]
fn ids_differ_and_never_change() {
    assert_eq!(call_id("a-0", 0), call_id("a-0", 0));
    assert_ne!(call_id("a-0", 0), call_id("a-0", 1));
    assert_ne!(call_id("a-0", 0), call_id("a-1", 0));
    assert!(call_id("a-0", 0).starts_with("call_") && call_id("a-0", 0).len() == 29);
}

proptest! {
    #[test]
    fn cuts_change_nothing(case in 0..CASES.len(), cuts in prop::collection::vec(any::<usize>(), 0..8), parallel: bool) {
        let (style, text, ..) = CASES[case];
        prop_assert_eq!(parse(style, text, &cuts, parallel), parse(style, text, &[], parallel));
    }

    #[test]
    fn any_text_is_survived(text in "(<tool_call>|[{}\"a-c: ,\\\\\\[\\]]|\"name\"|\"add\"|</tool_call>){0,40}", cuts in prop::collection::vec(any::<usize>(), 0..5)) {
        for style in [ToolStyle::Hermes, ToolStyle::Llama, ToolStyle::Mistral] {
            prop_assert_eq!(parse(style, &text, &cuts, true), parse(style, &text, &[], true));
        }
    }
}
