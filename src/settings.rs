//! Settings: flags over environment over a TOML file over defaults, and where each came from.
//!
//! Must never know what a setting means: the file's values become defaults of the command line, so
//! that one parser checks a value wherever it was written.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, FromArgMatches};
use toml::{Table, Value};

use crate::cli::{self, Cli};

/// A configuration file is read whole; a longer one is a mistake.
const FILE_BYTES: u64 = 1 << 20;

pub enum Loaded {
    Run(Box<Cli>),
    /// What `--print-config` shows.
    Print(String),
}

pub enum LoadError {
    Usage(clap::Error),
    File(String),
}

/// Flags of the file: command (or nothing), then flag.
type FromFile = BTreeSet<(String, String)>;

/// Reads the settings from `args` (the program's name first), the environment and the file.
pub fn load(args: Vec<OsString>) -> Result<Loaded, LoadError> {
    let data_dir = platform_dir("XDG_DATA_HOME", ".local/share");
    let file = config_file(&args, std::env::var_os("CARAVAN_CONFIG"));
    let config = match &file {
        Some(path) => read(path).map_err(LoadError::File)?,
        None => Table::new(),
    };
    let name = file.unwrap_or_default().display().to_string();
    let (command, from_file) =
        with_file(cli::command(&data_dir.to_string_lossy()), &config).map_err(|error| {
            LoadError::File(format!(
                "the configuration file {name} is wrong: {error}; correct it, or start with --config ''"
            ))
        })?;
    let matches = command.clone().try_get_matches_from(args).map_err(LoadError::Usage)?;
    let cli = Cli::from_arg_matches(&matches).map_err(LoadError::Usage)?;
    if cli.print_config {
        return Ok(Loaded::Print(report(&command, &matches, &from_file, &name)));
    }
    Ok(Loaded::Run(Box::new(cli)))
}

/// A folder of this program: under the variable's folder, else under the home's, else here.
fn platform_dir(variable: &str, under_home: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set(variable).or_else(|| set("HOME").map(|home| home.join(under_home)));
    base.map_or_else(|| PathBuf::from(".caravan"), |base| base.join("caravan"))
}

/// The file to read. It must be known before the flags are parsed, because it holds their defaults.
fn config_file(args: &[OsString], variable: Option<OsString>) -> Option<PathBuf> {
    let mut given = None;
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next().filter(|arg| *arg != "--") {
        if arg == "--config" {
            given = args.next().cloned();
        } else if let Some(value) = arg.to_str().and_then(|text| text.strip_prefix("--config=")) {
            given = Some(value.into());
        }
    }
    match given.or(variable) {
        Some(path) if path.is_empty() => None,
        Some(path) => Some(path.into()),
        None => {
            Some(platform_dir("XDG_CONFIG_HOME", ".config").join("config.toml")).filter(|path| path.exists())
        }
    }
}

fn read(path: &Path) -> Result<Table, String> {
    let wrong = |why: String| format!("the configuration file {} can't be used: {why}", path.display());
    let bytes = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > FILE_BYTES {
        return Err(wrong(format!("it is longer than {FILE_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    text.parse::<Table>().map_err(|error| wrong(error.to_string()))
}

/// The command line with the file's values as defaults.
fn with_file(command: clap::Command, config: &Table) -> Result<(clap::Command, FromFile), String> {
    let mut rest = vec![("", config)];
    let mut values = Vec::new();
    while let Some((section, table)) = rest.pop() {
        for (key, value) in table {
            match value {
                Value::Table(inner) if section.is_empty() => rest.push((key, inner)),
                _ => values.push((section, key.replace('_', "-"), words(key, value)?)),
            }
        }
    }
    let mut used = FromFile::new();
    let mut command = command;
    // Of two values for one flag the section's wins, so it is set last.
    values.sort_by_key(|(section, ..)| !section.is_empty());
    for (section, flag, words) in values {
        let before = used.len();
        command = set(command, (section, &flag), &words, section.is_empty(), &mut used);
        if used.len() == before && section.is_empty() {
            return Err(format!("there is no flag --{flag}"));
        }
        if !used.contains(&(section.to_owned(), flag.clone())) {
            return Err(format!("there is no flag --{flag} of `caravan {section}`"));
        }
    }
    Ok((command, used))
}

/// Sets the default of a flag in every command that has it and is `inside` the section.
fn set(
    command: clap::Command,
    (section, flag): (&str, &str),
    words: &[String],
    inside: bool,
    used: &mut FromFile,
) -> clap::Command {
    let inside = inside || command.get_name() == section;
    let mut found = false;
    let command = command.mut_args(|arg| {
        if !inside || arg.get_long() != Some(flag) || flag == "config" || flag == "print-config" {
            return arg;
        }
        found = true;
        let words: Vec<&'static str> = words.iter().map(|word| cli::leak(word.clone())).collect();
        arg.default_values(words).required(false)
    });
    if found {
        used.insert((section.to_owned(), flag.to_owned()));
    }
    command.mut_subcommands(|inner| set(inner, (section, flag), words, inside, used))
}

/// A value as it would be written behind its flag.
fn words(key: &str, value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Integer(number) => Ok(vec![number.to_string()]),
        Value::Float(number) => Ok(vec![number.to_string()]),
        Value::Boolean(on) => Ok(vec![on.to_string()]),
        Value::Array(items) => {
            let mut all = Vec::with_capacity(items.len());
            for item in items {
                all.append(&mut words(key, item)?);
            }
            Ok(all)
        }
        Value::Datetime(_) | Value::Table(_) => {
            Err(format!("{key} must be a string, a number, true or false, or a list of these"))
        }
    }
}

/// The settings of the chosen command as TOML, each with its origin in a comment.
fn report(command: &clap::Command, matches: &ArgMatches, from_file: &FromFile, file: &str) -> String {
    let mut lines = Vec::new();
    let (mut command, mut matches, mut path) = (command, matches, Vec::new());
    loop {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            if !matches!(long, "config" | "print-config" | "help" | "version") {
                lines.push(line(arg, long, matches, &path, (from_file, file)));
            }
        }
        let Some((name, inner)) = matches.subcommand() else { break };
        let Some(next) = command.find_subcommand(name) else { break };
        path.push(name.to_owned());
        (command, matches) = (next, inner);
    }
    lines.sort();
    format!("# caravan {}\n{}\n", path.join(" "), lines.join("\n"))
}

fn line(
    arg: &clap::Arg,
    long: &str,
    matches: &ArgMatches,
    path: &[String],
    (from_file, file): (&FromFile, &str),
) -> String {
    let id = arg.get_id().as_str();
    let values: Vec<String> = matches
        .get_raw(id)
        .map(|raw| raw.map(|value| value.to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let in_file = |section: &str| from_file.contains(&(section.to_owned(), long.to_owned()));
    let origin = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => format!("flag --{long}"),
        Some(ValueSource::EnvVariable) => format!("environment {}", cli::variable(long)),
        Some(_) if in_file("") || path.iter().any(|section| in_file(section)) => format!("file {file}"),
        Some(_) => "default".to_owned(),
        None => return format!("# {long} is not set"),
    };
    format!("{long} = {} # {origin}", literal(arg, &values))
}

/// Values as the file would hold them.
fn literal(arg: &clap::Arg, values: &[String]) -> String {
    let one = |value: &String| {
        let plain = value.parse::<f64>().is_ok_and(f64::is_finite) || value == "true" || value == "false";
        if plain { value.clone() } else { Value::String(value.clone()).to_string() }
    };
    match (arg.get_action(), values) {
        (ArgAction::Append, _) => format!("[{}]", values.iter().map(one).collect::<Vec<_>>().join(", ")),
        (_, [value]) => one(value),
        _ => "true".to_owned(),
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
