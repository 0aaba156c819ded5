//! The model file's chat template, rendered in a sandbox: bounded fuel, depth, source and output.
//!
//! Must never read a clock or anything else beside the messages: a prompt is a function of its request.

use std::io;
use std::sync::Arc;

use caravan_core::error::Refusal;
use caravan_core::gguf::Gguf;
use caravan_core::limits;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};

use super::{ChatMessage, Conversation, ToolStyle};

/// The template of a model, compiled once.
pub(super) struct ChatTemplate {
    source: String,
    compiled: Result<Environment<'static>, Unusable>,
    bos: Option<String>,
    eos: Option<String>,
}

enum Unusable {
    /// A base model: the client should ask for a completion.
    Missing,
    /// Says why.
    Broken(String),
}

const NAME: &str = "chat";

/// A message as templates see it: the fields that it has, in the order in which clients write them.
#[derive(Debug)]
struct Message {
    fields: Vec<(&'static str, Value)>,
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.fields.iter().map(|(name, _)| Value::from(*name)).collect())
    }
}

fn message(message: &ChatMessage, style: ToolStyle) -> Value {
    let mut fields = vec![
        ("role", Value::from(message.role.as_str())),
        ("content", Value::from(message.content.as_str())),
    ];
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            // Templates want arguments as an object; what is none stays the text that it is.
            let arguments = match serde_json::from_str::<serde_json::Value>(&call.arguments) {
                Ok(arguments) if arguments.is_object() => Value::from_serialize(&arguments),
                _ => Value::from(call.arguments.as_str()),
            };
            context! {
                id => style.id(&call.id).as_ref(),
                type => "function",
                function => context! { name => call.name.as_str(), arguments },
            }
        });
        fields.push(("tool_calls", calls.collect::<Vec<Value>>().into()));
    }
    if let Some(id) = &message.tool_call_id {
        fields.push(("tool_call_id", Value::from(style.id(id).as_ref())));
    }
    if let Some(name) = &message.name {
        fields.push(("name", Value::from(name.as_str())));
    }
    Value::from_object(Message { fields })
}

/// What a template says with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Output up to a limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.full |= self.bytes.len() + bytes.len() > limits::TEMPLATE_OUTPUT_BYTES;
        if self.full {
            return Err(io::Error::other("the rendered template is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ChatTemplate {
    pub(super) fn from_gguf(gguf: &Gguf) -> ChatTemplate {
        let text = |key: &str| gguf.metadata.get(key).and_then(|value| value.as_text());
        let token = |name: &str| {
            let id = gguf.metadata.get(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64()?;
            let tokens = gguf.metadata.get("tokenizer.ggml.tokens")?.as_texts()?;
            tokens.get(usize::try_from(id).ok()?).map(str::to_owned)
        };
        let source = text("tokenizer.chat_template").unwrap_or_default().to_owned();
        let compiled = match gguf.metadata.contains_key("tokenizer.chat_template") {
            true => compile(&source).map_err(Unusable::Broken),
            false => Err(Unusable::Missing),
        };
        if let Err(Unusable::Broken(why)) = &compiled {
            tracing::warn!(%why, "the model's chat template can't be used; completions still can");
        }
        ChatTemplate { source, compiled, bos: token("bos"), eos: token("eos") }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The prompt of a conversation, up to where the answer begins.
    pub(super) fn render(&self, conversation: &Conversation) -> Result<String, Refusal> {
        let environment = match &self.compiled {
            Ok(environment) => environment,
            Err(Unusable::Missing) => {
                let message =
                    "this model has no chat template; ask for a completion (/v1/completions) instead";
                return Err(Refusal::client("no_chat_template", "messages", message));
            }
            Err(Unusable::Broken(why)) => return Err(broken("bad_chat_template", why)),
        };
        let mut given = 0;
        conversation.texts(&mut |text| given += text.len());
        if given > limits::TEMPLATE_OUTPUT_BYTES {
            return Err(too_long());
        }
        // A template can nest values so deep that dropping them overflows an ordinary stack.
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(limits::TEMPLATE_STACK_BYTES);
            let thread = builder.spawn_scoped(scope, || self.render_here(environment, conversation, given));
            let rendered = thread.map_err(|error| busy(&error.to_string()))?.join();
            rendered.unwrap_or_else(|_| Err(broken("template_failed", "rendering it failed")))
        })
    }

    /// `given`: bytes of the messages.
    fn render_here(
        &self,
        environment: &Environment<'static>,
        conversation: &Conversation,
        given: usize,
    ) -> Result<String, Refusal> {
        let style = ToolStyle::of_template(&self.source);
        let list: Vec<Value> = conversation.messages.iter().map(|one| message(one, style)).collect();
        let tools = match conversation.tools.is_empty() {
            true => Value::from(()),
            false => Value::from_serialize(&conversation.tools),
        };
        let values = context! {
            messages => list,
            add_generation_prompt => true,
            bos_token => self.bos.as_deref().unwrap_or_default(),
            eos_token => self.eos.as_deref().unwrap_or_default(),
            tools,
            documents => (),
        };
        let mut out = Bounded::default();
        let rendered = environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(values, &mut out).map(drop));
        match rendered {
            // Long messages, not the template, are at fault if they are most of the output.
            Err(_) if out.full && given > limits::TEMPLATE_OUTPUT_BYTES / 2 => Err(too_long()),
            Err(error) => Err(refusal(&error, out.full)),
            Ok(()) => {
                String::from_utf8(out.bytes).map_err(|error| broken("template_failed", &error.to_string()))
            }
        }
    }
}

fn too_long() -> Refusal {
    let limit = limits::TEMPLATE_OUTPUT_BYTES;
    let message = format!("the messages are longer than the limit of {limit} bytes; shorten them");
    Refusal::client("context_length_exceeded", "messages", message)
}

fn busy(why: &str) -> Refusal {
    let message = format!("this node has no room to render the messages now ({why}); send the request again");
    Refusal::cluster("overloaded", limits::RETRY_AFTER_MS, message)
}

/// The operator's fault: another model file is needed, no retry helps.
fn broken(code: &str, why: &str) -> Refusal {
    let why: String = why.chars().take(400).collect();
    Refusal::operator(code, format!("the model's chat template can't be used: {why}"))
}

fn compile(source: &str) -> Result<Environment<'static>, String> {
    if source.len() > limits::TEMPLATE_SOURCE_BYTES {
        return Err(format!("its source is longer than {} bytes", limits::TEMPLATE_SOURCE_BYTES));
    }
    let mut environment = Environment::new();
    // As the templates' authors tested them: blocks leave no lines behind.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| error.to_string())?);
    environment.set_fuel(Some(limits::TEMPLATE_FUEL));
    environment.set_recursion_limit(limits::TEMPLATE_RECURSION);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let raised = Raised(message.chars().take(400).collect());
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    environment.add_template_owned(NAME, source.to_owned()).map_err(|error| error.to_string())?;
    Ok(environment)
}

/// The engine's `tojson` makes its output safe inside HTML; the templates were written for one that
/// leaves `<`, `>`, `&` and `'` as they are.
fn to_json(value: &Value, indent: Option<Value>, arguments: Kwargs) -> Result<Value, Error> {
    // Also passed by authors, and the way this filter works anyway.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => arguments.get("indent")?,
    };
    arguments.assert_all_used()?;
    let safe =
        minijinja::filters::tojson(value, indent, Kwargs::from_iter(std::iter::empty::<(&str, Value)>()))?;
    let safe = safe.as_str().unwrap_or_default();
    let mut out = String::with_capacity(safe.len());
    let mut rest = safe;
    while let Some(at) = rest.find('\\') {
        let escape = rest.get(at..at + 6).and_then(|escape| match escape {
            "\\u003c" => Some('<'),
            "\\u003e" => Some('>'),
            "\\u0026" => Some('&'),
            "\\u0027" => Some('\''),
            _ => None,
        });
        out.push_str(&rest[..at]);
        // Every other escape is two characters long, or begins with two that stay as they are.
        let length = match escape {
            Some(character) => {
                out.push(character);
                6
            }
            None => {
                out.push_str(rest.get(at..at + 2).unwrap_or("\\"));
                2
            }
        };
        rest = rest.get(at + length..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok(out.into())
}

fn refusal(error: &Error, output_full: bool) -> Refusal {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(raised) = cause.downcast_ref::<Raised>() {
            let message = format!("the model's chat template refuses these messages: {raised}");
            return Refusal::client("invalid_messages", "messages", message);
        }
        source = cause.source();
    }
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => {
            broken("template_limit", "it does not come to an end within its limit of work")
        }
        _ if output_full => broken("template_limit", "what it writes is longer than its limit"),
        _ if detail.contains("recursion limit") => broken("template_limit", "it nests deeper than its limit"),
        ErrorKind::UnknownFunction if detail.contains("strftime_now") => broken(
            "template_needs_clock",
            "it asks for the time (`strftime_now`), and answers here depend on nothing but the request",
        ),
        _ => broken("template_failed", &error.to_string()),
    }
}
