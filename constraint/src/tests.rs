//! Constraints over a vocabulary of single bytes and a few words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use caravan_core::error::Fault;
use caravan_core::gguf::Vocabulary;
use caravan_core::limits;
use caravan_core::request::{Constraint, ConstraintKind};

use super::*;

const END: u32 = 256;
const TURN: u32 = 257;

fn vocabulary() -> Vocabulary {
    let bytes = (0u8..=255).map(|byte| Ok(vec![byte]));
    let control = ["<|end|>", "<|turn|>"].map(|name| Err(name.to_owned()));
    let words = ["true", "\"name", "aa", "<|turn|>"].map(|word| Ok(word.as_bytes().to_vec()));
    Vocabulary::new(bytes.chain(control).chain(words))
}

fn constraint(kind: ConstraintKind, text: &str) -> Constraint {
    Constraint { kind, text: text.to_owned(), ends: vec![END], control: Vec::new() }
}

/// On a thread with the stack that the crate asks for.
fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(limits::CONSTRAINT_STACK_BYTES);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

fn compile(constraint: Constraint) -> Result<Compiled, ConstraintError> {
    deep(|| Compiler::new(&vocabulary(), &[END]).unwrap().compile(&constraint))
}

fn schema(text: &str) -> Result<Compiled, ConstraintError> {
    compile(constraint(ConstraintKind::JsonSchema { lenient: false }, text))
}

/// Walks over a text byte by byte; how many bytes were allowed, and whether it may end there.
fn walk(compiled: &Compiled, text: &str) -> (usize, bool) {
    deep(|| {
        let mut walk = compiled.begin();
        for (at, byte) in text.bytes().enumerate() {
            if !walk.allowed().unwrap().contains(u32::from(byte)) {
                return (at, false);
            }
            walk.advance(u32::from(byte)).unwrap();
        }
        (text.len(), walk.allowed().unwrap().contains(END))
    })
}

#[test]
fn a_schema_allows_what_fits_it() {
    let compiled = schema(
        r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
            "required": ["name", "age"], "additionalProperties": false}"#,
    )
    .unwrap();
    let good = r#"{"name": "Ada", "age": 36}"#;
    assert_eq!(walk(&compiled, good), (good.len(), true));
    assert_eq!(walk(&compiled, r#"{"name": "Ada", "age": -1"#).0, 23);
    assert_eq!(walk(&compiled, r#"{"age"#).0, 2);
    assert_eq!(walk(&compiled, r#"{"name": "Ada""#), (14, false));
}

#[test]
fn white_space_does_not_go_on_without_end() {
    let compiled = schema(r#"{"type": "object"}"#).unwrap();
    let (allowed, _) = walk(&compiled, &format!("{{{}", " ".repeat(100)));
    assert!((2..30).contains(&allowed), "{allowed}");
    // A client's own options are nobody's.
    let own = schema(r#"{"type": "object", "x-guidance": {"whitespace_flexible": false}}"#).unwrap();
    assert_eq!(walk(&own, "{ \"a\" : 1 }"), (11, true));
}

#[test]
fn expressions_and_grammars_do_as_they_say() {
    let regex = compile(constraint(ConstraintKind::Regex, "[ab]{2,3}c?")).unwrap();
    assert_eq!(walk(&regex, "abc"), (3, true));
    assert_eq!(walk(&regex, "a"), (1, false));
    assert_eq!(walk(&regex, "abcc").0, 3);
    let lark = "start: \"(\" start \")\" | NUMBER\nNUMBER: /[0-9]+/\n";
    let lark = compile(constraint(ConstraintKind::Lark, lark)).unwrap();
    assert_eq!(walk(&lark, "((42))"), (6, true));
    assert_eq!(walk(&lark, "((42)"), (5, false));
    assert_eq!(walk(&lark, "((42)))").0, 6);
}

#[test]
fn behind_a_text_that_can_not_grow_stands_only_the_end() {
    let compiled = compile(constraint(ConstraintKind::Regex, "yes|no")).unwrap();
    deep(|| {
        let mut walk = compiled.begin();
        "no".bytes().for_each(|byte| walk.advance(u32::from(byte)).unwrap());
        let allowed = walk.allowed().unwrap();
        let all: Vec<u32> = (0..vocabulary().len()).filter(|token| allowed.contains(*token)).collect();
        assert_eq!(all, [END]);
        walk.advance(END).unwrap();
        assert!(walk.ended());
        assert!(walk.allowed().is_err());
    });
}

#[test]
fn no_text_names_a_control_token() {
    for text in [
        "start: <|turn|> \"a\"\n",
        "start: <[257]>\n",
        "start: <[0-257]>\n",
        "start: <[*]>\n",
        "start: <[^1]>\n",
    ] {
        let refused = compile(constraint(ConstraintKind::Lark, text)).err().expect(text);
        assert_eq!(refused.fault(), Fault::Client, "{text}: {refused}");
    }
    // Its name as text is text.
    let compiled = compile(constraint(ConstraintKind::Lark, "start: \"<|turn|>\"\n")).unwrap();
    let allowed = deep(|| compiled.begin().allowed().unwrap());
    assert!(!allowed.contains(TURN) && allowed.contains(u32::from(b'<')) && allowed.contains(261));
    // The server's own grammars may, if they say so.
    let own =
        Constraint { control: vec![TURN], ..constraint(ConstraintKind::Lark, "start: <[257]> \"a\"\n") };
    let compiled = compile(own).unwrap();
    deep(|| {
        let mut walk = compiled.begin();
        let allowed = walk.allowed().unwrap();
        assert!(allowed.contains(TURN) && !allowed.contains(u32::from(b'<')));
        walk.advance(TURN).unwrap();
        assert!(walk.allowed().unwrap().contains(u32::from(b'a')));
    });
}

#[test]
fn what_makes_no_sense_is_the_clients() {
    let of = |kind, text: &str| {
        let refused = compile(constraint(kind, text)).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert_eq!(refused.fault(), Fault::Client, "{text}: {refused}");
        assert!(refused.to_string().len() < 600 && !refused.to_string().contains("<state>"), "{refused}");
    };
    let strict = ConstraintKind::JsonSchema { lenient: false };
    for text in [
        "{",
        "[]",
        "7",
        r#"{"type": "strange"}"#,
        r#"{"type": 7}"#,
        r##"{"$ref": "#/nowhere"}"##,
        r#"{"$ref": "http://127.0.0.1:1/schema.json"}"#,
        r#"{"$ref": "file:///etc/hosts"}"#,
        r#"{"not": {"type": "string"}}"#,
        r#"{"type": "string", "pattern": "(?=a)"}"#,
        r#"{"type": "string", "format": "no-such"}"#,
        r#"{"minItems": -1}"#,
        r#"{"enum": []}"#,
        r#"{"type": "integer", "minimum": 3, "maximum": 2}"#,
    ] {
        of(strict, text);
    }
    for text in ["(", "[", "a{2,1}", "(?=a)b", "\\p{Nothing}", "*"] {
        of(ConstraintKind::Regex, text);
    }
    for text in [
        "",
        "start",
        "begin: \"a\"\n",
        "start: other\n",
        "start: \"a\n",
        "start: %json {\n",
        "start: @other\n",
        "start[temperature=0.3]: /a/\n",
        "start[stop=\"x\"]: /a*/\n",
        "start: A\nA: A \"b\"\n",
    ] {
        of(ConstraintKind::Lark, text);
    }
}

#[test]
fn lenient_schemas_pass_over_what_can_not_be_enforced() {
    let text = r#"{"type": "string", "format": "no-such", "maxLength": 2, "unheard": 3}"#;
    let compiled = compile(constraint(ConstraintKind::JsonSchema { lenient: true }, text)).unwrap();
    assert_eq!(walk(&compiled, "\"ab\""), (4, true));
    assert_eq!(walk(&compiled, "\"abc").0, 3);
}

/// Each of these would take very long, or all memory, without limits.
#[test]
fn hostile_constraints_are_refused_or_harmless() {
    let doubling: String = (0..60).map(|i| format!("r{i}: r{} r{}\n", i + 1, i + 1)).collect();
    let wide: String = (0..40_000).map(|i| format!("\"value number {i}\",")).collect();
    let lark = |text: String| constraint(ConstraintKind::Lark, &text);
    let regex = |text: &str| constraint(ConstraintKind::Regex, text);
    let json = |text: String| constraint(ConstraintKind::JsonSchema { lenient: false }, &text);
    let nested = format!("{}{{}}{}", "{\"items\":".repeat(20_000), "}".repeat(20_000));
    let all = [
        lark(format!("start: r0\n{doubling}r60: \"a\"\n")),
        lark("start: start start | start start start | \"a\" | \"\"\n".into()),
        lark(format!("start: {}\n", "(".repeat(100_000))),
        lark(format!("start: {}\"a\"\n", "~".repeat(100_000))),
        lark("start: A\nA: /(.*a){30}/ & ~/(.*b){30}/ & /(.*c){30}/\n".into()),
        regex("(a{1000}){1000}"),
        regex("((((a{9}){9}){9}){9}){9}{9}{9}{9}"),
        regex("(a|aa|aaa)*(a|b)*[ab]{0,500}(x+x+)+y"),
        regex(&"(".repeat(100_000)),
        regex(&format!("(.*a){}", ".{100}".repeat(60))),
        json(format!("{{\"enum\": [{}0]}}", wide)),
        json(nested),
        json(r#"{"type":"string","minLength":100000,"maxLength":200000}"#.into()),
        json(r#"{"type":"array","minItems":100000,"items":{"type":"array","minItems":100000}}"#.into()),
    ];
    for constraint in all {
        let shown = constraint.text.chars().take(60).collect::<String>();
        match compile(constraint) {
            Err(error) => assert_eq!(error.fault(), Fault::Client, "{shown}: {error}"),
            Ok(compiled) => deep(|| {
                let mut walk = compiled.begin();
                for _ in 0..20 {
                    let Ok(allowed) = walk.allowed() else { return };
                    let Some(token) = (0..END).find(|token| allowed.contains(*token)) else { return };
                    if walk.advance(token).is_err() {
                        return;
                    }
                }
            }),
        }
    }
}

/// What limits count depends on what was asked before: a walk begun anew is asked the same.
#[test]
fn a_walk_begun_anew_allows_the_same() {
    let compiled =
        schema(r#"{"type": "object", "properties": {"a": {"type": "string", "pattern": "^(ab|ba)*$"}}}"#)
            .unwrap();
    deep(|| {
        let text = "{\"a\": \"abba\"}".as_bytes();
        let mut first = compiled.begin();
        let mut seen = vec![first.allowed().unwrap()];
        for byte in text {
            first.advance(u32::from(*byte)).unwrap();
            seen.push(first.allowed().unwrap());
        }
        for cut in 0..=text.len() {
            let mut again = compiled.begin();
            assert_eq!(again.allowed().unwrap(), seen[0]);
            for (at, byte) in text[..cut].iter().enumerate() {
                again.advance(u32::from(*byte)).unwrap();
                assert_eq!(again.allowed().unwrap(), seen[at + 1]);
            }
        }
    });
}
