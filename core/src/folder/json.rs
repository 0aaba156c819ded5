//! Values of a folder's JSON files, read with errors that name the file and the key.
//!
//! Must never put a default in the place of a value that is there and wrong.

use serde_json::{Map, Value};

use super::{FolderError, bad, shown};

/// The object of one file, or one inside it.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    /// Where errors say it is, such as `config.json`.
    place: &'a str,
    map: &'a Map<String, Value>,
}

/// A file whose whole content is one object.
pub(super) fn parse(place: &str, bytes: &[u8]) -> Result<Map<String, Value>, FolderError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => bad(format!("{place} must be a JSON object")),
        Err(error) => bad(format!("{place} is not sound JSON ({error}): fetch it again")),
    }
}

impl<'a> Object<'a> {
    pub fn new(place: &'a str, map: &'a Map<String, Value>) -> Object<'a> {
        Object { place, map }
    }

    /// `null` counts as not there.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there at all, be it `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub fn wrong<T>(&self, key: &str, must: &str) -> Result<T, FolderError> {
        let value = self.map.get(key).map_or_else(String::new, |value| format!(", not {}", brief(value)));
        bad(format!("{}: the key {} must be {must}{value}", self.place, shown(key)))
    }

    pub fn missing<T>(&self, key: &str) -> Result<T, FolderError> {
        bad(format!("{} lacks the key {}", self.place, shown(key)))
    }

    /// What the value asks for is not computed by this build.
    pub fn unsupported<T>(&self, key: &str) -> Result<T, FolderError> {
        let value = self.map.get(key).map_or_else(String::new, |value| format!(" = {}", brief(value)));
        bad(format!(
            "{}: {}{value} asks for something that this build does not support",
            self.place,
            shown(key)
        ))
    }

    pub fn count(&self, key: &str, most: u32) -> Result<Option<u32>, FolderError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => self.wrong(key, &format!("a whole number from 1 to {most}")),
        }
    }

    pub fn required_count(&self, key: &str, most: u32) -> Result<u32, FolderError> {
        match self.count(key, most)? {
            Some(number) => Ok(number),
            None => self.missing(key),
        }
    }

    /// A finite number above 0, also as f32.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, FolderError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (number as f32).is_finite() && number as f32 > 0.0 => Ok(Some(number)),
            _ => self.wrong(key, "a finite number above 0"),
        }
    }

    pub fn required_positive(&self, key: &str) -> Result<f64, FolderError> {
        match self.positive(key)? {
            Some(number) => Ok(number),
            None => self.missing(key),
        }
    }

    pub fn positives(&self, key: &str) -> Result<Option<Vec<f64>>, FolderError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = |value: &Value| value.as_f64().filter(|x| (*x as f32).is_finite() && *x as f32 > 0.0);
        match value.as_array().map(|values| values.iter().map(number).collect::<Option<Vec<f64>>>()) {
            Some(Some(numbers)) => Ok(Some(numbers)),
            _ => self.wrong(key, "a list of finite numbers above 0"),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, FolderError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, FolderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(key, "a string"),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, FolderError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_array().map(|values| values.iter().map(Value::as_str).collect::<Option<Vec<_>>>()) {
            Some(Some(texts)) => Ok(Some(texts)),
            _ => self.wrong(key, "a list of strings"),
        }
    }

    pub fn list(&self, key: &str) -> Result<Option<&'a [Value]>, FolderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => self.wrong(key, "a list"),
        }
    }

    /// An object inside this one.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>, FolderError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Object { place: self.place, map })),
            Some(_) => self.wrong(key, "an object"),
        }
    }

    /// Refuses a key whose value is not the one that this build computes; it need not be there.
    pub fn only(&self, key: &str, wanted: &Value) -> Result<(), FolderError> {
        match self.get(key) {
            Some(value) if value != wanted => self.unsupported(key),
            _ => Ok(()),
        }
    }
}

/// A value as an error shows it: never long.
pub(super) fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}
