//! The document against the parsers: every documented field is taken, every field taken is documented or
//! refused, every documented type is the type that is read.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::bad_input::good;
use super::fake::speaking;
use super::{get, post};
use crate::api::fields::recorder;
use crate::api::openapi::document;

/// The document, and how to find one's way in it.
struct Document(Value);

impl Document {
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(path) => self.resolve(self.0.pointer(path.trim_start_matches('#')).expect(path)),
            None => schema,
        }
    }

    /// The forms that a schema allows, null left out.
    fn forms<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        let schema = self.resolve(schema);
        match schema["anyOf"].as_array() {
            Some(forms) => forms.iter().flat_map(|form| self.forms(form)).collect(),
            None if schema["type"] == "null" => Vec::new(),
            None => vec![schema],
        }
    }

    /// A value of each form, so that every field of every object in it is there once.
    fn samples(&self, schema: &Value) -> Vec<Value> {
        self.forms(schema).into_iter().flat_map(|form| self.of_form(form)).collect()
    }

    fn of_form(&self, form: &Value) -> Vec<Value> {
        if let Some(words) = form["enum"].as_array() {
            return words.clone();
        }
        match form["type"].as_str() {
            Some("string") => vec![json!("hi")],
            Some("boolean") => vec![json!(true), json!(false)],
            Some("integer") => vec![form["minimum"].clone()],
            Some("number") => vec![form["maximum"].clone()],
            Some("array") => {
                let items = self.samples(&form["items"]);
                items.into_iter().map(|item| json!([item])).collect()
            }
            Some("object") => self.objects(form),
            None => vec![json!({})],
            other => panic!("a type of its own: {other:?}"),
        }
    }

    /// For each sample of each field an object that has it and what is required.
    fn objects(&self, form: &Value) -> Vec<Value> {
        let Some(properties) = form["properties"].as_object() else { return vec![json!({})] };
        let needed: Vec<&str> =
            form["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let first = |name: &str| self.samples(&properties[name]).swap_remove(0);
        let base: Map<String, Value> = needed.iter().map(|name| ((*name).to_owned(), first(name))).collect();
        let mut objects = vec![Value::Object(base.clone())];
        for (name, schema) in properties {
            for value in self.samples(schema) {
                let mut object = base.clone();
                object.insert(name.clone(), value);
                objects.push(Value::Object(object));
            }
        }
        objects
    }

    fn request(&self, path: &str) -> Option<&Value> {
        let schema = &self.0["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        (!schema.is_null()).then(|| self.resolve(schema))
    }

    /// Paths of all fields, as parsers name them.
    fn fields(&self, schema: &Value, at: &str, found: &mut BTreeSet<String>) {
        for form in self.forms(schema) {
            if form["type"] == "array" {
                self.fields(&form["items"], &format!("{at}[0]"), found);
            }
            for (name, schema) in form["properties"].as_object().into_iter().flatten() {
                let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                self.fields(schema, &path, found);
                found.insert(path);
            }
        }
    }
}

/// What has to stand beside a field for it to make sense.
fn beside(path: &str, body: &mut Value) {
    let fields = body.as_object_mut().unwrap();
    if fields.contains_key("stream_options") {
        fields.insert("stream".into(), json!(true));
    }
    if fields.contains_key("top_logprobs") && path == "/v1/chat/completions" {
        fields.insert("logprobs".into(), json!(true));
    }
    if fields.get("max_tokens") == Some(&json!(0)) {
        fields.insert("echo".into(), json!(true));
    }
    if path == "/tokenize" {
        let chat = fields.contains_key("messages");
        if fields.get("add_generation_prompt").is_some() {
            fields.insert("add_generation_prompt".into(), json!(true));
            fields.insert("messages".into(), json!([{"role": "user", "content": "hi"}]));
        } else if !chat {
            fields.entry("prompt").or_insert(json!("hi"));
        }
    }
}

/// Requests that fit the schema and are refused for a reason which no schema tells.
fn refused_anyway(path: &str, body: &Value) -> bool {
    let last = |field: &str| body[field].as_array().and_then(|list| list.last()).cloned().unwrap_or_default();
    let counting = ["/v1/messages", "/v1/messages/count_tokens"].contains(&path);
    (counting && last("messages")["role"] == "assistant")
        || (path == "/v1/responses" && last("input")["type"] == "reasoning")
}

#[tokio::test]
async fn what_is_documented_is_taken() {
    let (_fake, router) = speaking("ok");
    let document = Document(document(&["tiny".to_owned()]));
    let mut sent = 0;
    for (_, path, _) in good() {
        let schema = document.request(path).unwrap_or_else(|| panic!("{path} is not in the document"));
        for mut body in document.objects(schema) {
            beside(path, &mut body);
            let reply = post(&router, path, body.clone()).await;
            let wanted = if refused_anyway(path, &body) { 400 } else { 200 };
            assert_eq!(reply.status, wanted, "{path} {body}: {}", reply.text);
            sent += 1;
        }
    }
    assert!(sent > 150, "{sent} requests");
}

#[tokio::test]
async fn what_is_taken_is_documented_or_refused() {
    let (_fake, router) = speaking("ok");
    let document = Document(document(&["tiny".to_owned()]));
    for (_, path, base) in good() {
        let schema = document.request(path).unwrap();
        recorder::taken();
        for mut body in document.objects(schema) {
            beside(path, &mut body);
            post(&router, path, body).await;
        }
        let taken = recorder::taken();
        let mut documented = BTreeSet::new();
        document.fields(schema, "", &mut documented);
        assert!(taken.len() > 1, "{path}: {taken:?}");
        for field in taken.iter().filter(|field| !documented.contains(*field)) {
            // What is not documented must be refused, whatever it says.
            for value in [json!("x"), json!(5), json!([1]), json!({"a": 1}), json!(true)] {
                let body = with(&document.objects(schema), &base, field, value);
                let reply = post(&router, path, body.clone()).await;
                assert_eq!(reply.status, 400, "{path} {field} {body}");
                let param = reply.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
                let named = field.starts_with(&param) || param.starts_with(field.as_str());
                assert!(!param.is_empty() && named, "{path} {body}: {}", reply.text);
            }
        }
    }
}

/// A request in which `field` has `value`: the good one, or one that has what the field is part of.
fn with(requests: &[Value], base: &Value, field: &str, value: Value) -> Value {
    let pointer = format!("/{}", field.replace(['.', '['], "/").replace(']', ""));
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let mut all = std::iter::once(base).chain(requests);
    let fitting = all.find(|body| body.pointer(parent).is_some_and(Value::is_object));
    let mut body = fitting.unwrap_or_else(|| panic!("no request has {parent}")).clone();
    body.pointer_mut(parent).unwrap()[name] = value;
    body
}

#[tokio::test]
async fn wrong_types_are_refused() {
    let (fake, router) = speaking("ok");
    let document = Document(document(&["tiny".to_owned()]));
    let wrong = [
        ("string", json!("\u{1}none")),
        ("integer", json!(7)),
        ("number", json!(0.125)),
        ("boolean", json!(true)),
        ("array", json!([{"a": null}])),
        ("object", json!({"a": [null]})),
    ];
    for (_, path, base) in good() {
        let schema = document.request(path).unwrap();
        for (name, schema) in schema["properties"].as_object().unwrap() {
            let mut types: Vec<&str> =
                document.forms(schema).iter().filter_map(|form| form["type"].as_str()).collect();
            if types.contains(&"number") {
                types.push("integer");
            }
            for (_, value) in wrong.iter().filter(|(kind, _)| !types.contains(kind)) {
                let mut body = base.clone();
                body[name] = value.clone();
                let reply = post(&router, path, body.clone()).await;
                assert_eq!(reply.status, 400, "{path} {body}: {}", reply.text);
                let param = reply.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
                assert!(param.starts_with(name.as_str()), "{path} {body}: {}", reply.text);
            }
        }
    }
    assert!(fake.records.lock().unwrap().is_empty());
}

#[tokio::test]
async fn every_route_of_v1_is_documented_and_served() {
    let (_fake, router) = speaking("ok");
    let served = get(&router, "/openapi.json").await;
    assert_eq!(served.status, 200);
    let served = served.json();
    assert_eq!(served["components"]["schemas"]["ModelName"]["enum"], json!(["tiny"]));
    let paths = served["paths"].as_object().unwrap();
    let source = include_str!("../mod.rs");
    let routes = source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let stateless: Vec<String> = routes
        .filter(|route| route.starts_with("/v1/") || route.ends_with("tokenize"))
        .map(|route| route.replace("{*id}", "{id}"))
        .collect();
    assert!(stateless.len() >= paths.len());
    for route in &stateless {
        assert!(paths.contains_key(route), "{route} is not documented");
    }
    for path in paths.keys() {
        assert!(stateless.contains(path), "{path} is not served");
    }
}
