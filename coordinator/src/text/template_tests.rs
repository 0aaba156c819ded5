//! Templates that are good, hostile or broken.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use caravan_core::error::{Fault, Refusal};
use caravan_core::gguf::Gguf;
use caravan_core::gguf::synthetic::TinyLlama;
use caravan_core::limits;

use super::{ChatMessage, TextModel};

fn model(template: &str) -> TextModel {
    let bytes = TinyLlama::default().writer().text("tokenizer.chat_template", template).finish();
    TextModel::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap()).unwrap()
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn render(template: &str, content: &str) -> Result<String, Refusal> {
    model(template).render_chat(&vec![message("user", content)].into())
}

fn refused(template: &str, code: &str, fault: Fault) -> Refusal {
    let refusal = render(template, "x").unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.fault), (code, fault), "{refusal}");
    refusal
}

#[test]
fn a_conversation_is_rendered_as_its_authors_meant() {
    let text = TinyLlama::default().writer().finish();
    let model = TextModel::from_gguf(&Gguf::parse(&text, text.len() as u64).unwrap()).unwrap();
    let messages = [message("system", "Be brief."), message("user", "hello\n")];
    let wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello\n<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(model.render_chat(&messages.to_vec().into()).unwrap(), wanted);
}

#[test]
fn what_templates_of_today_use_is_there() {
    let is =
        |template: &str, wanted: &str| assert_eq!(render(template, " a<b ").unwrap(), wanted, "{template}");
    is("{{ bos_token }}{{ messages[0]['content'] | trim }}{{ eos_token }}", "<|endoftext|>a<b<|im_end|>");
    is("{{ messages[0].content.strip().split('<')[-1] }}", "b");
    is("{% if true %}\n    {% set x = 'y' %}\n{{ x }}\n{% endif %}\n", "y\n");
    is(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "1",
    );
    is("{{ messages[0] | tojson }}", r#"{"role": "user", "content": " a<b "}"#);
    is("{{ ['<&>\\'', 'é\"\\\\u003c', '\n'] | tojson }}", r#"["<&>'", "é\"\\u003c", "\n"]"#);
    is("{{ {'a': [1, none, true]} | tojson(indent=1) }}", "{\n \"a\": [\n  1,\n  null,\n  true\n ]\n}");
    is(
        "{% if tools is not none %}tools{% endif %}{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "01",
    );
    is("{%- macro say(x) -%}<{{ x }}>{%- endmacro -%}{{ say(messages[0].role) }}", "<user>");
    // Guarded uses of the clock fall back to what their authors chose.
    is(
        "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% else %}26 Jul 2024{% endif %}",
        "26 Jul 2024",
    );
}

#[test]
fn templates_that_do_not_end_are_stopped() {
    let long = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    refused(long, "template_limit", Fault::Operator);
    let doubling = "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
    refused(doubling, "template_limit", Fault::Operator);
    refused("{{ 'x' * 90000000 }}", "template_limit", Fault::Operator);
    let output = "{% for i in range(60000) %}0123456789012345678901234567890123456789{% endfor %}";
    refused(output, "template_limit", Fault::Operator);
    refused("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "template_limit", Fault::Operator);
}

#[test]
fn values_nested_without_end_do_not_break_the_stack() {
    for loops in [1, 2, 3, 5, 9] {
        let grow = format!(
            "{{% set ns = namespace(x=[]) %}}{{% for a in range({loops}) %}}{{% for i in range(50000) %}}\
             {{% set ns.x = [ns.x] %}}{{% endfor %}}{{% endfor %}}"
        );
        for end in
            ["", "{{ ns.x }}", "{{ ns.x | tojson }}", "{{ ns.x == ns.x }}", "{{ ns.x | string | length }}"]
        {
            match render(&format!("{grow}{end}"), "x") {
                Ok(_) => assert!(loops <= 3),
                Err(refusal) => assert_eq!((loops > 3, refusal.code.as_str()), (true, "template_limit")),
            }
        }
    }
}

#[test]
fn a_refusing_template_blames_the_messages() {
    let refusal = refused("{{ raise_exception('roles must alternate') }}", "invalid_messages", Fault::Client);
    assert_eq!(refusal.param.as_deref(), Some("messages"));
    assert!(refusal.message.contains("roles must alternate"));
    refused(
        "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}",
        "invalid_messages",
        Fault::Client,
    );
}

#[test]
fn templates_that_can_not_work_are_the_operators() {
    let refusal = refused("{{ strftime_now('%Y') }}", "template_needs_clock", Fault::Operator);
    assert!(refusal.message.contains("strftime_now"));
    refused("{% if %}", "bad_chat_template", Fault::Operator);
    refused("{{ nothing_of_that_name() }}", "template_failed", Fault::Operator);
    refused("{% include 'other' %}", "template_failed", Fault::Operator);
    refused("{{ 1 / 0 }}", "template_failed", Fault::Operator);
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    refused(&nested, "bad_chat_template", Fault::Operator);
    refused(&"x".repeat(limits::TEMPLATE_SOURCE_BYTES + 1), "bad_chat_template", Fault::Operator);
}

#[test]
fn a_model_without_a_template_says_so() {
    let bytes = TinyLlama::default().writer().without("tokenizer.chat_template").finish();
    let model = TextModel::from_gguf(&Gguf::parse(&bytes, bytes.len() as u64).unwrap()).unwrap();
    let refusal = model.render_chat(&vec![message("user", "x")].into()).unwrap_err();
    assert_eq!((refusal.code.as_str(), refusal.fault), ("no_chat_template", Fault::Client));
    assert!(!model.encode("hello", false).is_empty());
}

#[test]
fn messages_that_are_too_long_are_the_clients() {
    for length in [limits::TEMPLATE_OUTPUT_BYTES + 1, limits::TEMPLATE_OUTPUT_BYTES - 10] {
        let refusal = render("{{ messages[0].content }} and more text", &"x".repeat(length)).unwrap_err();
        assert_eq!((refusal.code.as_str(), refusal.fault), ("context_length_exceeded", Fault::Client));
    }
}
