//! Small words to write JSON schemas with.
//!
//! Must never know an endpoint.

use serde_json::{Map, Value, json};

/// A field of an object: its name, whether it must be there, its schema.
pub type FieldSchema = (&'static str, bool, Value);

pub fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

pub fn string() -> Value {
    json!({"type": "string"})
}

/// Of at most so many characters, which in any writing fit the bytes that are allowed.
pub fn short(max_bytes: usize) -> Value {
    json!({"type": "string", "maxLength": max_bytes / 4})
}

/// As `short`, and not empty.
pub fn named(max_bytes: usize) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": max_bytes / 4})
}

pub fn boolean() -> Value {
    json!({"type": "boolean"})
}

pub fn never() -> Value {
    json!({"type": "boolean", "enum": [false]})
}

pub fn integer() -> Value {
    json!({"type": "integer"})
}

pub fn integer_in(min: impl Into<Value>, max: impl Into<Value>) -> Value {
    json!({"type": "integer", "minimum": min.into(), "maximum": max.into()})
}

pub fn number() -> Value {
    json!({"type": "number"})
}

pub fn number_in(min: f64, max: f64) -> Value {
    json!({"type": "number", "minimum": min, "maximum": max})
}

pub fn positive(max: f64) -> Value {
    json!({"type": "number", "exclusiveMinimum": 0, "maximum": max})
}

pub fn word(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

pub fn list(items: Value, min: usize, max: usize) -> Value {
    json!({"type": "array", "items": items, "minItems": min, "maxItems": max})
}

pub fn any_list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

pub fn one_of(choices: Vec<Value>) -> Value {
    json!({"anyOf": choices})
}

/// The schema, or null.
pub fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

/// A field of a request: one that need not be there may be null, which says the same.
pub fn optional(name: &'static str, schema: Value) -> FieldSchema {
    (name, false, nullable(schema))
}

pub fn required(name: &'static str, schema: Value) -> FieldSchema {
    (name, true, schema)
}

/// An object with these fields and no others.
pub fn object(fields: Vec<FieldSchema>) -> Value {
    let mut object = open_object(fields);
    object["additionalProperties"] = json!(false);
    object
}

/// An object that may have more fields.
pub fn open_object(fields: Vec<FieldSchema>) -> Value {
    let needed: Vec<&str> = fields.iter().filter(|field| field.1).map(|field| field.0).collect();
    let properties: Map<String, Value> =
        fields.into_iter().map(|(name, _, schema)| (name.to_owned(), schema)).collect();
    json!({"type": "object", "properties": properties, "required": needed})
}
