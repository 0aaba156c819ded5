//! From a constraint's text to a grammar over the model's tokens, within limits of size and work.
//!
//! Must never let a client's text name a control token, read anything outside itself, or change how
//! the grammar is read: options that a schema carries for the library are left out.

use std::sync::Arc;

use caravan_core::gguf::Vocabulary;
use caravan_core::limits;
use caravan_core::request::{Constraint, ConstraintKind};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{ParserFactory, TokenParser};
use serde_json::{Value, json};

use crate::ConstraintError;
use crate::error::line;
use crate::walk::Walk;

/// Compiles constraints for one model. Made once for each model and shared; takes a few times the
/// vocabulary's memory.
pub struct Compiler {
    factory: ParserFactory,
    ends: Vec<u32>,
}

/// A constraint, compiled; any number of sequences begin at it.
pub struct Compiled {
    parser: TokenParser,
    ends: Arc<[u32]>,
}

/// The vocabulary as the library wants it. Text is never turned into tokens here: the model chooses
/// how it writes what the grammar allows.
struct Words {
    trie: TokTrie,
}

impl TokenizerEnv for Words {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Compiler {
    /// `ends`: tokens that end an answer, at least one. An error is the operator's: no grammar can be
    /// used with this model.
    pub fn new(vocabulary: &Vocabulary, ends: &[u32]) -> Result<Compiler, ConstraintError> {
        let vocab = vocabulary.len();
        let Some(&first) = ends.first().filter(|_| ends.iter().all(|end| *end < vocab)) else {
            return Err(ConstraintError::Internal("the model has no token that ends an answer".into()));
        };
        let words: Vec<Vec<u8>> = (0..vocab).map(|token| word(vocabulary, token)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab, first), &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(Words { trie });
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| internal(&error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_items_in_row: limits::CONSTRAINT_ROW_ITEMS,
            initial_lexer_fuel: limits::CONSTRAINT_COMPILE_FUEL,
            step_lexer_fuel: limits::CONSTRAINT_TOKEN_FUEL,
            step_max_items: limits::CONSTRAINT_TOKEN_ITEMS,
            max_lexer_states: limits::CONSTRAINT_STATES,
            max_grammar_size: limits::CONSTRAINT_SYMBOLS,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        Ok(Compiler { factory, ends: ends.to_vec() })
    }

    /// The tokens that end an answer, as given.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Compiles, and finds what an answer may begin with: a constraint that allows no answer at all
    /// is refused here.
    pub fn compile(&self, constraint: &Constraint) -> Result<Compiled, ConstraintError> {
        check_text(constraint)?;
        let grammar = grammar(constraint)?;
        let mut parser = self
            .factory
            .create_parser(grammar)
            .map_err(|error| ConstraintError::of_text(&error.to_string()))?;
        self.check_grammar(&mut parser, constraint)?;
        parser.start_without_prompt();
        let compiled = Compiled { parser, ends: self.ends.as_slice().into() };
        compiled.begin().allowed()?;
        Ok(compiled)
    }

    fn check_grammar(
        &self,
        parser: &mut TokenParser,
        constraint: &Constraint,
    ) -> Result<(), ConstraintError> {
        let spec = parser.parser.grammar().lexer_spec();
        // The library may read and not keep it.
        let heads = constraint.text.lines().filter_map(|line| line.split(':').next());
        let heated = constraint.kind == ConstraintKind::Lark
            && heads.filter(|head| head.contains('[')).any(|head| head.contains("temperature"));
        if spec.has_stop || spec.has_temperature || heated {
            let why = "`stop` and `temperature` of a rule are not supported; `suffix` and `lazy` are";
            return Err(ConstraintError::Invalid(why.into()));
        }
        let vocab = self.factory.tok_env().tok_trie().vocab_size() as u32;
        for lexeme in spec.token_range_lexemes(&spec.all_lexemes()) {
            let foreign = (0..vocab).find(|token| {
                lexeme.contains_token(*token) && constraint.control.binary_search(token).is_err()
            });
            if let Some(token) = foreign {
                let why = format!("the grammar names token {token}; tokens can't be named, only text");
                return Err(ConstraintError::Invalid(why));
            }
        }
        Ok(())
    }
}

impl Compiled {
    /// A sequence at its beginning. Shares nothing with other sequences that could change a verdict.
    pub fn begin(&self) -> Walk {
        Walk::new(self.parser.deep_clone(), self.ends.clone())
    }
}

/// A token's bytes; of a control token its name behind a byte that no text has.
fn word(vocabulary: &Vocabulary, token: u32) -> Vec<u8> {
    match vocabulary.control_name(token) {
        Some(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
        None => vocabulary.bytes(token).to_vec(),
    }
}

fn internal(why: &str) -> ConstraintError {
    ConstraintError::Internal(line(why))
}

/// Size, and depth of brackets: what is parsed by recursion must not be nested without end.
fn check_text(constraint: &Constraint) -> Result<(), ConstraintError> {
    let text = &constraint.text;
    if text.len() > limits::CONSTRAINT_BYTES {
        let why = format!("it has {} bytes of at most {}", text.len(), limits::CONSTRAINT_BYTES);
        return Err(ConstraintError::TooComplex(why));
    }
    let (mut depth, mut deepest, mut signs) = (0usize, 0, 0usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // Signs that stand before (or behind) what they change nest too.
        signs = if matches!(byte, b'~' | b'?' | b'*' | b'+') { signs + 1 } else { 0 };
        deepest = deepest.max(depth).max(signs);
    }
    if constraint_nests(constraint.kind) && deepest > limits::CONSTRAINT_DEPTH {
        let why = format!("it is nested {deepest} deep of at most {}", limits::CONSTRAINT_DEPTH);
        return Err(ConstraintError::TooComplex(why));
    }
    if constraint.kind == ConstraintKind::Lark && text.lines().count() > limits::CONSTRAINT_LINES {
        let why = format!("a grammar has at most {} lines", limits::CONSTRAINT_LINES);
        return Err(ConstraintError::TooComplex(why));
    }
    Ok(())
}

/// The JSON parser has a limit of its own, which strings full of brackets do not meet.
fn constraint_nests(kind: ConstraintKind) -> bool {
    matches!(kind, ConstraintKind::Regex | ConstraintKind::Lark)
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, ConstraintError> {
    match constraint.kind {
        ConstraintKind::JsonSchema { lenient } => {
            let schema: Value = serde_json::from_str(&constraint.text)
                .map_err(|error| ConstraintError::Invalid(format!("it is not JSON: {error}")))?;
            Ok(TopLevelGrammar::from_json_schema(with_options(schema, lenient)?))
        }
        ConstraintKind::Regex => Ok(TopLevelGrammar::from_regex(&constraint.text)),
        ConstraintKind::Lark => Ok(TopLevelGrammar::from_lark(constraint.text.clone())),
    }
}

/// White space between the parts of JSON: enough for any usual layout, and no room to go on with
/// nothing else until the answer's length is used up.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

/// Key under which a schema carries options for the library.
const OPTIONS: &str = "x-guidance";

/// The schema with our options and nobody else's.
fn with_options(schema: Value, lenient: bool) -> Result<Value, ConstraintError> {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        // Also a schema: everything, which is as good as no keyword at all.
        Value::Bool(true) => serde_json::Map::new(),
        _ => return Err(ConstraintError::Invalid("a schema must be an object".into())),
    };
    schema.insert(OPTIONS.into(), options(lenient));
    Ok(Value::Object(schema))
}

/// How schemas are read, also those inside of grammars that this program writes.
fn options(lenient: bool) -> Value {
    json!({"whitespace_pattern": WHITE_SPACE, "lenient": lenient, "coerce_one_of": lenient})
}

/// A schema as it stands inside a grammar that this program writes. `lenient`: as of a schema alone.
pub fn embedded(schema: Value, lenient: bool) -> Value {
    match schema {
        Value::Object(mut schema) => {
            schema.insert(OPTIONS.into(), options(lenient));
            Value::Object(schema)
        }
        other => other,
    }
}
