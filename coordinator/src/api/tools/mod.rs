//! Tools as requests offer them, and which of them an answer may or must call.
//!
//! Must never know how a model writes a call: `grammar` and `calls` do, by the model's family.

pub mod calls;
pub mod grammar;

use caravan_core::error::Refusal;
use caravan_core::limits;
use serde_json::{Map, Value, json};

use super::fields::{Field, Fields, clip, invalid, unsupported};
use super::format;

/// A function that a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of its arguments; `None`: it takes none.
    pub parameters: Option<Value>,
    /// Its arguments match the schema wherever it is called, and keywords that can't be enforced
    /// are refused.
    pub strict: bool,
    /// Where the schema stood, for errors.
    pub field: String,
}

/// Whether tools are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolMode {
    /// Never.
    #[default]
    None,
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
}

/// The tools of a request. Without any, nothing is called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    /// All that the model is told of.
    pub list: Vec<Tool>,
    pub mode: ToolMode,
    /// Of `list`, the names that may be called; `None`: all.
    pub allowed: Option<Vec<String>>,
    /// More than one call in an answer.
    pub parallel: bool,
}

impl Tools {
    /// Those that may be called in the answer.
    pub fn callable(&self) -> Vec<&Tool> {
        let allowed = |tool: &&Tool| match (&self.mode, &self.allowed) {
            (ToolMode::None, _) => false,
            (_, Some(names)) => names.contains(&tool.name),
            (_, None) => true,
        };
        self.list.iter().filter(allowed).collect()
    }

    /// As chat templates take them.
    pub fn for_template(&self) -> Vec<Value> {
        let shown = |tool: &Tool| {
            let mut function = Map::new();
            function.insert("name".into(), json!(tool.name));
            if let Some(description) = &tool.description {
                function.insert("description".into(), json!(description));
            }
            let none = || json!({"type": "object", "properties": {}});
            function.insert("parameters".into(), tool.parameters.clone().unwrap_or_else(none));
            json!({"type": "function", "function": function})
        };
        match self.mode {
            // Telling a model of tools that it may not use would only mislead it.
            ToolMode::None => Vec::new(),
            _ => self.list.iter().map(shown).collect(),
        }
    }
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls` of OpenAI's chats.
pub fn chat_tools(fields: &mut Fields) -> Result<Tools, Refusal> {
    let mut list = Vec::new();
    for field in fields.take("tools").array(limits::TOOLS)?.unwrap_or_default() {
        list.push(tool(field)?);
    }
    check_names(&list, "tools")?;
    let choice = fields.take("tool_choice");
    let parallel = fields.take("parallel_tool_calls");
    if list.is_empty() {
        without_tools(&choice)?;
        if parallel.present() {
            return Err(invalid(parallel.path(), "is only allowed when `tools` are given"));
        }
        return Ok(Tools::default());
    }
    let (mode, allowed) = tool_choice(choice, &list)?;
    let parallel = parallel.boolean()?.unwrap_or(true);
    Ok(Tools { list, mode, allowed, parallel })
}

/// Refuses two tools of one name, and too much text.
pub fn check_names(list: &[Tool], field: &str) -> Result<(), Refusal> {
    let mut bytes = 0;
    for (i, tool) in list.iter().enumerate() {
        if list[..i].iter().any(|other| other.name == tool.name) {
            return Err(invalid(field, format!("has two functions with the name `{}`", tool.name)));
        }
        bytes += tool.description.as_ref().map_or(0, String::len);
        bytes += tool.parameters.as_ref().map_or(0, |schema| schema.to_string().len());
    }
    match bytes > limits::TOOLS_BYTES {
        true => {
            Err(invalid(field, format!("hold {bytes} bytes; at most {} are allowed", limits::TOOLS_BYTES)))
        }
        false => Ok(()),
    }
}

fn without_tools(choice: &Field) -> Result<(), Refusal> {
    match choice.text() {
        None if choice.present() => Err(invalid(choice.path(), "is only allowed when `tools` are given")),
        Some(word) if word != "none" && word != "auto" => {
            Err(invalid(choice.path(), "is only allowed when `tools` are given"))
        }
        _ => Ok(()),
    }
}

fn tool(field: Field) -> Result<Tool, Refusal> {
    let at = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Err(invalid(&at, "must be an object")) };
    let kind = fields.take("type").required()?;
    let kind_at = kind.path().to_owned();
    match kind.string(limits::HTTP_BODY_BYTES)?.as_deref() {
        Some("function") => {}
        other => {
            let why = format!("\"{}\" is not supported, only \"function\"", clip(other.unwrap_or_default()));
            return Err(unsupported(&kind_at, why));
        }
    }
    let inner = fields.take("function").required()?;
    let inner_at = inner.path().to_owned();
    let Some(inner) = inner.object()? else { return Err(invalid(&inner_at, "must be an object")) };
    fields.finish(&["cache_control"])?;
    function(inner, &inner_at)
}

/// The object with `name`, `description`, `parameters` and `strict`, wherever an API has it.
/// `at`: its path.
pub fn function(mut fields: Fields, at: &str) -> Result<Tool, Refusal> {
    let tool = Tool {
        name: format::name(fields.take("name").required()?)?,
        description: fields.take("description").string(limits::TOOLS_BYTES)?,
        parameters: format::schema(fields.take("parameters"))?,
        strict: fields.take("strict").boolean()?.unwrap_or(false),
        field: format!("{at}.parameters"),
    };
    fields.finish(&[])?;
    Ok(tool)
}

/// What a `tool_choice` says: the mode, and the names that may be called.
pub type Choice = (ToolMode, Option<Vec<String>>);

fn tool_choice(field: Field, list: &[Tool]) -> Result<Choice, Refusal> {
    if !field.present() {
        return Ok((ToolMode::Auto, None));
    }
    if !field.is_object() {
        return mode(field, &["none", "auto", "required"]).map(|mode| (mode, None));
    }
    let Some(mut fields) = field.object()? else { return Ok((ToolMode::Auto, None)) };
    let kind = fields.take("type").required()?;
    let kind_at = kind.path().to_owned();
    let choice = match kind.string(limits::HTTP_BODY_BYTES)?.as_deref() {
        Some("function") => {
            let function = fields.take("function").required()?;
            (ToolMode::Required, Some(vec![named(function, list)?]))
        }
        Some("allowed_tools") => {
            let inner = fields.take("allowed_tools").required()?;
            let inner_at = inner.path().to_owned();
            let Some(inner) = inner.object()? else { return Err(invalid(&inner_at, "must be an object")) };
            allowed_tools(inner, list)?
        }
        other => {
            let word = clip(other.unwrap_or_default());
            return Err(invalid(
                &kind_at,
                format!("\"{word}\" is neither \"function\" nor \"allowed_tools\""),
            ));
        }
    };
    fields.finish(&[])?;
    Ok(choice)
}

/// One of the words that `allowed` has.
pub fn mode(field: Field, allowed: &[&str]) -> Result<ToolMode, Refusal> {
    let at = field.path().to_owned();
    let word = field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    match word.as_str() {
        _ if !allowed.contains(&word.as_str()) => {
            Err(invalid(&at, format!("\"{}\" is none of {allowed:?}", clip(&word))))
        }
        "none" => Ok(ToolMode::None),
        "required" => Ok(ToolMode::Required),
        _ => Ok(ToolMode::Auto),
    }
}

fn allowed_tools(mut fields: Fields, list: &[Tool]) -> Result<Choice, Refusal> {
    let mode = mode(fields.take("mode").required()?, &["auto", "required"])?;
    let tools = fields.take("tools").required()?;
    let tools_at = tools.path().to_owned();
    let mut names = Vec::new();
    for tool in tools.array(limits::TOOLS)?.unwrap_or_default() {
        let at = tool.path().to_owned();
        let Some(mut fields) = tool.object()? else { return Err(invalid(&at, "must be an object")) };
        let kind = fields.take("type").required()?;
        if kind.text() != Some("function") {
            return Err(invalid(kind.path(), "must be \"function\""));
        }
        names.push(named(fields.take("function").required()?, list)?);
        fields.finish(&[])?;
    }
    if names.is_empty() {
        return Err(invalid(&tools_at, "must hold at least one function"));
    }
    fields.finish(&[])?;
    Ok((mode, Some(names)))
}

/// `{"name": …}` of a function that is offered.
fn named(field: Field, list: &[Tool]) -> Result<String, Refusal> {
    let at = field.path().to_owned();
    let Some(mut fields) = field.object()? else { return Err(invalid(&at, "must be an object")) };
    let name = offered(fields.take("name").required()?, list)?;
    fields.finish(&[])?;
    Ok(name)
}

/// The name of a function that is offered.
pub fn offered(field: Field, list: &[Tool]) -> Result<String, Refusal> {
    let at = field.path().to_owned();
    let name = field.string(limits::HTTP_BODY_BYTES)?.unwrap_or_default();
    match list.iter().any(|tool| tool.name == name) {
        true => Ok(name),
        false => Err(invalid(&at, format!("\"{}\" is not the name of a function in `tools`", clip(&name)))),
    }
}
