//! What an answer has to look like, as requests ask for it: `response_format`, and for regular
//! expressions and grammars `structured_outputs`.
//!
//! Must never judge a schema or a grammar: the compiler does, in `constrain`.

use caravan_core::error::Refusal;
use caravan_core::limits;
use caravan_core::request::ConstraintKind;
use serde_json::Value;

use super::fields::{Field, Fields, clip, invalid, unsupported};

/// A form that was asked for, and the field that did.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    /// To be named if the form can't be used.
    pub field: String,
    pub form: Form,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    JsonObject,
    /// `strict`: keywords that can't be enforced are refused, not passed over.
    JsonSchema {
        schema: Value,
        strict: bool,
    },
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// In Lark's notation.
    Grammar(String),
}

impl Form {
    /// The form as the compiler takes it.
    pub fn constraint(&self) -> (ConstraintKind, String) {
        let schema = |text: String, lenient| (ConstraintKind::JsonSchema { lenient }, text);
        match self {
            Form::JsonObject => schema(r#"{"type":"object"}"#.into(), false),
            Form::JsonSchema { schema: text, strict } => schema(text.to_string(), !strict),
            Form::Regex(text) => (ConstraintKind::Regex, text.clone()),
            Form::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| escape(text)).collect();
                (ConstraintKind::Regex, format!("({})", texts.join("|")))
            }
            Form::Grammar(text) => (ConstraintKind::Lark, text.clone()),
        }
    }
}

/// `text` as a regular expression that matches it and nothing else.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// Reads `response_format` and `structured_outputs`; at most one of them asks for something.
pub fn formats(fields: &mut Fields) -> Result<Option<Format>, Refusal> {
    let response = response_format(fields.take("response_format"))?;
    let structured = structured_outputs(fields.take("structured_outputs"))?;
    match (&response, structured) {
        (Some(_), Some(structured)) => {
            Err(invalid(&structured.field, "can't be combined with `response_format`"))
        }
        (_, structured) => Ok(response.or(structured)),
    }
}

/// OpenAI's `response_format` of chats: an object with `type`.
pub fn response_format(field: Field) -> Result<Option<Format>, Refusal> {
    let at = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Ok(None) };
    let kind = fields.take("type").required()?;
    let kind_at = kind.path().to_owned();
    let kind = kind.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    let inner = fields.take("json_schema");
    if kind != "json_schema" {
        inner.refuse_any("is only allowed with `type`: \"json_schema\"")?;
    }
    let found = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Format { field: at, form: Form::JsonObject }),
        "json_schema" => {
            let inner = inner.required()?;
            let Some(fields) = inner.object()? else { return Ok(None) };
            Some(json_schema(fields, &format!("{at}.json_schema"))?)
        }
        other => {
            let why = format!("\"{}\" is none of \"text\", \"json_object\", \"json_schema\"", clip(other));
            return Err(invalid(&kind_at, why));
        }
    };
    fields.finish(&[])?;
    Ok(found)
}

/// The object with `name`, `schema` and `strict`, wherever an API has it. `at`: its path.
pub fn json_schema(mut fields: Fields, at: &str) -> Result<Format, Refusal> {
    name(fields.take("name").required()?)?;
    fields.take("description").string(limits::CONSTRAINT_BYTES)?;
    let strict = fields.take("strict").boolean()?.unwrap_or(false);
    let schema = schema(fields.take("schema"))?;
    fields.finish(&[])?;
    let field = format!("{at}.schema");
    let form = match schema {
        Some(schema) => Form::JsonSchema { schema, strict },
        None => Form::JsonObject,
    };
    Ok(Format { field, form })
}

/// A name of letters, digits, `_` and `-`, at most 64 of them.
pub fn name(field: Field) -> Result<String, Refusal> {
    let at = field.path().to_owned();
    let name = field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    match (1..=64).contains(&name.len()) && name.chars().all(good) {
        true => Ok(name),
        false => Err(invalid(&at, "must be 1 to 64 letters, digits, `_` or `-`")),
    }
}

/// A JSON schema: an object whose text is not too long.
pub fn schema(field: Field) -> Result<Option<Value>, Refusal> {
    let at = field.path().to_owned();
    let Some(schema) = field.object_value()? else { return Ok(None) };
    let bytes = schema.to_string().len();
    if bytes > limits::CONSTRAINT_BYTES {
        let why = format!("has {bytes} bytes; at most {} are allowed", limits::CONSTRAINT_BYTES);
        return Err(invalid(&at, why));
    }
    Ok(Some(schema))
}

/// The extension: exactly one of `json`, `json_object`, `regex`, `choice`, `grammar`.
fn structured_outputs(field: Field) -> Result<Option<Format>, Refusal> {
    let at = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Ok(None) };
    let mut found = Vec::new();
    let mut add = |name: &str, form: Option<Form>| {
        found.extend(form.map(|form| Format { field: format!("{at}.{name}"), form }));
    };
    let json = json_text(fields.take("json"))?;
    add("json", json.map(|schema| Form::JsonSchema { schema, strict: true }));
    let object = fields.take("json_object").boolean()?.unwrap_or(false);
    add("json_object", object.then_some(Form::JsonObject));
    add("regex", fields.take("regex").string(limits::CONSTRAINT_BYTES)?.map(Form::Regex));
    add("choice", choice(fields.take("choice"))?.map(Form::Choice));
    add("grammar", fields.take("grammar").string(limits::CONSTRAINT_BYTES)?.map(Form::Grammar));
    let known = [
        "disable_any_whitespace",
        "disable_additional_properties",
        "whitespace_pattern",
        "structural_tag",
        "disable_fallback",
    ];
    fields.finish(&known)?;
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(format), None) => Ok(Some(format)),
        (None, _) => Err(invalid(&at, "needs one of `json`, `json_object`, `regex`, `choice`, `grammar`")),
        (Some(_), Some(second)) => Err(invalid(&second.field, "is one form too many; send one")),
    }
}

/// A schema as an object, or as its text.
fn json_text(field: Field) -> Result<Option<Value>, Refusal> {
    if !field.is_string() {
        return schema(field);
    }
    let at = field.path().to_owned();
    let text = field.string(limits::CONSTRAINT_BYTES)?.unwrap_or_default();
    match serde_json::from_str(&text) {
        Ok(Value::Object(schema)) => Ok(Some(Value::Object(schema))),
        Ok(_) => Err(invalid(&at, "must be a JSON object")),
        Err(error) => Err(invalid(&at, format!("is not JSON: {}", clip(&error.to_string())))),
    }
}

fn choice(field: Field) -> Result<Option<Vec<String>>, Refusal> {
    let at = field.path().to_owned();
    let Some(items) = field.array(limits::CHOICE_TEXTS)? else { return Ok(None) };
    if items.is_empty() {
        return Err(invalid(&at, "must hold at least one text"));
    }
    let mut texts = Vec::new();
    for item in items {
        let at = item.path().to_owned();
        match item.required()?.string(limits::CONSTRAINT_BYTES)? {
            Some(text) if !text.is_empty() => texts.push(text),
            _ => return Err(invalid(&at, "must not be empty")),
        }
    }
    Ok(Some(texts))
}

/// Refuses a form together with what would never end it.
pub fn check_ends(format: Option<&Format>, ignore_eos: bool) -> Result<(), Refusal> {
    match format {
        Some(format) if ignore_eos => {
            let why =
                format!("can't be combined with `{}`, whose text ends where it is complete", format.field);
            Err(unsupported("ignore_eos", why))
        }
        _ => Ok(()),
    }
}
