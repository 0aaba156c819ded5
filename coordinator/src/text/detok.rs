//! From token bytes to text that can be shown: whole characters only, and nothing of a stop string.
//!
//! Must never depend on how the bytes or the text were cut into pieces.

/// Turns tokens into text piece by piece; never splits a character. The joined pieces are what
/// `String::from_utf8_lossy` gives for all the bytes.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Text that has become complete with these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            // Valid by `valid_up_to`, so nothing is replaced here.
            out.push_str(&String::from_utf8_lossy(valid));
            rest = after;
            match error.error_len() {
                Some(length) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
                None => break,
            }
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        out
    }

    /// What is left at the end; incomplete characters become U+FFFD.
    pub fn finish(&mut self) -> String {
        match std::mem::take(&mut self.pending).is_empty() {
            true => String::new(),
            false => char::REPLACEMENT_CHARACTER.to_string(),
        }
    }
}

/// Finds stop strings in a stream of text; holds back what may be the beginning of one.
/// The stop string that is complete first wins; of those complete at the same place, the longest.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    /// Place of the one that was found.
    found: Option<usize>,
}

impl StopMatcher {
    /// Empty stop strings are left out: they would stop before the first character.
    pub fn new(mut stops: Vec<String>) -> StopMatcher {
        stops.retain(|stop| !stop.is_empty());
        StopMatcher { stops, held: String::new(), found: None }
    }

    /// Text that may be shown, and whether a stop string was found (nothing is shown after it).
    pub fn push(&mut self, text: &str) -> (String, bool) {
        if self.found.is_some() {
            return (String::new(), true);
        }
        if self.stops.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_stop() {
            self.found = Some(stop);
            let mut shown = std::mem::take(&mut self.held);
            shown.truncate(start);
            return (shown, true);
        }
        let keep = self.held.split_off(self.safe());
        (std::mem::replace(&mut self.held, keep), false)
    }

    /// What was held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|at| self.stops.get(at)).map(String::as_str)
    }

    /// Where the stop string that is complete first begins, and its place in the list.
    fn first_stop(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(at, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, at))
        });
        found.min().map(|(_, start, at)| (start, at))
    }

    /// How much of the held text can't be part of a stop string that is yet to come.
    fn safe(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let may_begin = |at: &usize| {
            let tail = &self.held.as_bytes()[*at..];
            self.stops.iter().any(|stop| stop.as_bytes().starts_with(tail))
        };
        // A stop string begins with a whole character, so a match at a byte is one at a character.
        (from..self.held.len()).find(may_begin).unwrap_or(self.held.len())
    }
}
