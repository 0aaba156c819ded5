//! What a person sees on standard error: lines, and bars where there is a terminal. And the one way
//! to standard output, which belongs to a command's result.
//!
//! Must never write more than a line a second where there is no terminal, nor mix the two.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Without a terminal a bar says where it is this often.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Standard error, as a terminal or as plain lines.
#[derive(Clone)]
pub struct Term {
    bars: Option<MultiProgress>,
}

/// Progress of one thing.
pub struct Bar {
    label: String,
    kind: Kind,
}

enum Kind {
    Drawn(ProgressBar),
    Plain(Mutex<Plain>),
}

struct Plain {
    total: Option<u64>,
    /// Whether positions are bytes.
    bytes: bool,
    said: Instant,
    text: String,
}

impl Term {
    pub fn new() -> Term {
        Term { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Says one line, above the bars.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// A bar over bytes; without a `total` it only counts.
    pub fn bytes(&self, label: &str, total: Option<u64>) -> Bar {
        let Some(bars) = &self.bars else { return Bar::plain(label, total, true) };
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(style(template)),
            None => ProgressBar::new_spinner(),
        };
        Bar::drawn(bars.add(bar), label)
    }

    /// A bar over `total` things of one kind.
    pub fn steps(&self, label: &str, total: u64) -> Bar {
        let Some(bars) = &self.bars else { return Bar::plain(label, Some(total), false) };
        let bar = ProgressBar::new(total).with_style(style("{msg} [{bar:30}] {pos}/{len} {eta}"));
        Bar::drawn(bars.add(bar), label)
    }

    /// A line that changes: what is being waited for.
    pub fn waiting(&self, label: &str) -> Bar {
        let Some(bars) = &self.bars else { return Bar::plain(label, None, true) };
        let bar = bars.add(ProgressBar::new_spinner().with_style(style("{spinner} {msg} ({elapsed})")));
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar::drawn(bar, label)
    }
}

/// A template of indicatif; the plain style if it is refused, which costs looks and nothing else.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bar {
    fn drawn(bar: ProgressBar, label: &str) -> Bar {
        bar.set_message(label.to_owned());
        Bar { label: label.to_owned(), kind: Kind::Drawn(bar) }
    }

    fn plain(label: &str, total: Option<u64>, bytes: bool) -> Bar {
        let plain = Plain { total, bytes, said: Instant::now(), text: String::new() };
        Bar { label: label.to_owned(), kind: Kind::Plain(Mutex::new(plain)) }
    }

    /// Says how far it is, in bytes or steps.
    pub fn set(&self, position: u64) {
        match &self.kind {
            Kind::Drawn(bar) => bar.set_position(position),
            Kind::Plain(plain) => {
                let Ok(mut plain) = plain.lock() else { return };
                if plain.said.elapsed() < PLAIN_EVERY {
                    return;
                }
                plain.said = Instant::now();
                let words = |number: u64| if plain.bytes { size(number) } else { number.to_string() };
                match plain.total {
                    Some(total) => {
                        let percent = 100 * position.min(total) / total.max(1);
                        eprintln!("{}: {} of {} ({percent} %)", self.label, words(position), words(total));
                    }
                    None => eprintln!("{}: {}", self.label, words(position)),
                }
            }
        }
    }

    /// Says what is being waited for, in words. Plain lines are not repeated.
    pub fn say(&self, text: &str) {
        match &self.kind {
            Kind::Drawn(bar) => bar.set_message(format!("{}: {text}", self.label)),
            Kind::Plain(plain) => {
                let Ok(mut plain) = plain.lock() else { return };
                if plain.text != text && (plain.text.is_empty() || plain.said.elapsed() >= PLAIN_EVERY / 2) {
                    plain.said = Instant::now();
                    text.clone_into(&mut plain.text);
                    eprintln!("{}: {text}", self.label);
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn done(self) {
        if let Kind::Drawn(bar) = self.kind {
            bar.finish_and_clear();
        }
    }
}

/// Writes a command's result. A reader that has gone, as in `caravan status | head -1`, has what it wants.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("can't write to standard output"))
        }
        _ => Ok(()),
    }
}

/// Bytes for people, in decimal units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Columns of `rows` padded to the widest cell; the first row is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_round_up_to_the_next_unit() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(98_362_432), "98.4 MB");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(size(u64::MAX), "18446744.1 TB");
    }

    #[test]
    fn tables_line_up_and_end_without_blanks() {
        let rows = [vec!["id".to_owned(), "state".to_owned()], vec!["worker-1".to_owned(), "up".to_owned()]];
        assert_eq!(table(&rows), "id        state\nworker-1  up\n");
    }
}
