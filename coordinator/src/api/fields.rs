//! A typed reader of JSON objects: every error names its field, and nothing that was sent is ignored.
//!
//! Must never know what the fields mean.

use std::ops::RangeInclusive;

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Map, Value};

type Read<T> = Result<T, Refusal>;

/// An object whose fields are taken one by one; `finish` refuses what is left over.
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

/// A value and where it stands (`messages[2].content`). `null` counts as absent, as OpenAI has it.
pub struct Field {
    path: String,
    value: Option<Value>,
}

/// The beginning of `text`, short enough to be quoted in an error.
pub fn clip(text: &str) -> String {
    match text.char_indices().nth(limits::ERROR_WORD_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The value has the wrong type.
fn mistyped(path: &str, wanted: &str, value: &Value) -> Refusal {
    Refusal::client("invalid_type", path, format!("`{path}` must be {wanted}, but is {}", kind(value)))
}

/// The value has the right type and makes no sense.
pub fn invalid(path: &str, why: impl std::fmt::Display) -> Refusal {
    Refusal::client("invalid_value", path, format!("`{path}` {why}"))
}

/// A parameter that exists elsewhere and not here (yet).
pub fn unsupported(path: &str, why: impl std::fmt::Display) -> Refusal {
    Refusal::client("unsupported_parameter", path, format!("`{path}` {why}"))
}

/// Says nothing: `null`, `false`, or empty.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl Fields {
    /// The body of a request. Errors name no field.
    pub fn parse(body: &[u8]) -> Read<Fields> {
        let refuse =
            |message: String| Refusal { param: None, ..Refusal::client("invalid_json", "", message) };
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| refuse(format!("the body is not valid JSON: {}", clip(&error.to_string()))))?;
        match value {
            Value::Object(map) => Ok(Fields { path: String::new(), map }),
            other => Err(refuse(format!("the body must be a JSON object, but is {}", kind(&other)))),
        }
    }

    fn at(&self, name: &str) -> String {
        let name = clip(name);
        if self.path.is_empty() { name } else { format!("{}.{name}", self.path) }
    }

    pub fn take(&mut self, name: &str) -> Field {
        let value = self.map.remove(name).filter(|value| !value.is_null());
        Field { path: self.at(name), value }
    }

    /// Refuses the first field that was not taken: as unsupported if it says something and its name is
    /// in `known`, as unknown if it is not.
    pub fn finish(self, known: &[&str]) -> Read<()> {
        for (name, value) in &self.map {
            let path = self.at(name);
            if !known.contains(&name.as_str()) {
                let message = format!("`{path}` is not a parameter of this endpoint");
                return Err(Refusal::client("unknown_parameter", &path, message));
            }
            if !is_empty(value) {
                return Err(unsupported(&path, "is not supported by this server yet"));
            }
        }
        Ok(())
    }
}

impl Field {
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn present(&self) -> bool {
        self.value.is_some()
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<&str> {
        self.value.as_ref().and_then(Value::as_str)
    }

    pub fn is_string(&self) -> bool {
        matches!(self.value, Some(Value::String(_)))
    }

    /// An array that begins with a number.
    pub fn holds_numbers(&self) -> bool {
        matches!(&self.value, Some(Value::Array(items)) if matches!(items.first(), Some(Value::Number(_))))
    }

    pub fn is_array(&self) -> bool {
        matches!(self.value, Some(Value::Array(_)))
    }

    pub fn is_object(&self) -> bool {
        matches!(self.value, Some(Value::Object(_)))
    }

    /// Refuses an absent value.
    pub fn required(self) -> Read<Field> {
        if self.present() {
            return Ok(self);
        }
        let message = format!("`{}` is required", self.path);
        Err(Refusal::client("missing_required_parameter", &self.path, message))
    }

    /// Refuses any value that says something.
    pub fn refuse(self, why: &str) -> Read<()> {
        match self.value {
            Some(value) if !is_empty(&value) => Err(unsupported(&self.path, why)),
            _ => Ok(()),
        }
    }

    /// Refuses any value at all.
    pub fn refuse_any(&self, why: &str) -> Read<()> {
        if self.present() { Err(invalid(&self.path, why)) } else { Ok(()) }
    }

    pub fn boolean(self) -> Read<Option<bool>> {
        match self.value {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(mistyped(&self.path, "a boolean", &other)),
        }
    }

    /// A boolean of which only `false` is supported.
    pub fn only_false(self, why: &str) -> Read<()> {
        let path = self.path.clone();
        match self.boolean()? {
            Some(true) => Err(unsupported(&path, why)),
            _ => Ok(()),
        }
    }

    pub fn string(self, max_bytes: usize) -> Read<Option<String>> {
        match self.value {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= max_bytes => Ok(Some(text)),
            Some(Value::String(text)) => {
                let why = format!("has {} bytes; at most {max_bytes} are allowed", text.len());
                Err(invalid(&self.path, why))
            }
            Some(other) => Err(mistyped(&self.path, "a string", &other)),
        }
    }

    /// A finite number in `range`.
    pub fn number_in(self, range: RangeInclusive<f64>) -> Read<Option<f64>> {
        let Some(value) = self.value else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| mistyped(&self.path, "a number", &value))?;
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let why = format!("must be between {} and {}, but is {number}", range.start(), range.end());
        Err(invalid(&self.path, why))
    }

    /// A whole number in `range`, written without fraction and exponent.
    pub fn integer_in(self, range: RangeInclusive<i128>) -> Read<Option<i128>> {
        let Some(value) = self.value else { return Ok(None) };
        let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
        let why = format!("must be between {} and {}", range.start(), range.end());
        match number {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            Some(number) => Err(invalid(&self.path, format!("{why}, but is {number}"))),
            // The parser keeps an integer beyond 64 bits as a float: it is out of range, not mistyped.
            None => match value.as_f64() {
                Some(huge) if huge.abs() >= 9e18 => Err(invalid(&self.path, why)),
                _ => Err(mistyped(&self.path, "an integer", &value)),
            },
        }
    }

    pub fn array(self, max: usize) -> Read<Option<Vec<Field>>> {
        match self.value {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() > max => {
                let why = format!("has {} entries; at most {max} are allowed", items.len());
                Err(invalid(&self.path, why))
            }
            Some(Value::Array(items)) => {
                let path = self.path;
                let field = |(i, value)| Field { path: format!("{path}[{i}]"), value: Some(value) };
                Ok(Some(items.into_iter().enumerate().map(field).collect()))
            }
            Some(other) => Err(mistyped(&self.path, "an array", &other)),
        }
    }

    /// Token ids. (Not by `array`: a path for each of a million tokens would cost more than the tokens.)
    pub fn token_ids(self, max: usize) -> Read<Vec<u32>> {
        let path = self.path;
        let items = match self.value {
            Some(Value::Array(items)) => items,
            other => return Err(mistyped(&path, "an array of token ids", &other.unwrap_or(Value::Null))),
        };
        if items.is_empty() {
            return Err(invalid(&path, "must not be empty"));
        }
        if items.len() > max {
            let why = format!("has {} tokens; at most {max} are allowed", items.len());
            return Err(invalid(&path, why));
        }
        let token = |(i, value): (usize, &Value)| {
            let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
            token.ok_or_else(|| {
                let path = format!("{path}[{i}]");
                if value.is_number() {
                    return invalid(&path, "must be a token id, a whole number from 0");
                }
                mistyped(&path, "a token id", value)
            })
        };
        items.iter().enumerate().map(token).collect()
    }

    pub fn object(self) -> Read<Option<Fields>> {
        match self.value {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path: self.path, map })),
            Some(other) => Err(mistyped(&self.path, "an object", &other)),
        }
    }

    /// An object as it stands.
    pub fn object_value(self) -> Read<Option<Value>> {
        match self.value {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Value::Object(map))),
            Some(other) => Err(mistyped(&self.path, "an object", &other)),
        }
    }

    /// The entries of an object with free keys, at most `max`.
    pub fn entries(self, max: usize) -> Read<Vec<(String, Field)>> {
        let Some(fields) = self.object()? else { return Ok(Vec::new()) };
        if fields.map.len() > max {
            let why = format!("has {} entries; at most {max} are allowed", fields.map.len());
            return Err(invalid(&fields.path, why));
        }
        let path = fields.path;
        let entry = |(name, value): (String, Value)| {
            let field = Field { path: format!("{path}.{}", clip(&name)), value: Some(value) };
            (name, field)
        };
        Ok(fields.map.into_iter().map(entry).collect())
    }

    /// The value has none of the types that are allowed.
    pub fn mistyped(&self, wanted: &str) -> Refusal {
        mistyped(&self.path, wanted, self.value.as_ref().unwrap_or(&Value::Null))
    }
}
