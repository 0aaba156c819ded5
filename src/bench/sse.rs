//! Server-sent events out of pieces of bytes that may be cut anywhere.
//! Source: the HTML standard, section "Server-sent events", 9.2.6.
//!
//! Must never keep more than a line and an event of bounded length.

use caravan_core::limits;

/// The stream's state between two pieces.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_return: bool,
}

/// A line or an event longer than this tool takes. The server's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {} bytes", limits::BENCH_LINE_BYTES)]
pub struct TooLong;

impl Events {
    /// Takes the next piece and adds the data of every event that it completes.
    pub fn push(&mut self, piece: &[u8], events: &mut Vec<Vec<u8>>) -> Result<(), TooLong> {
        for &byte in piece {
            // A line ends in "\n", "\r" or "\r\n".
            let second_half = byte == b'\n' && std::mem::take(&mut self.after_return);
            self.after_return = byte == b'\r';
            if second_half {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                self.end_line(events)?;
            } else if self.line.len() >= limits::BENCH_LINE_BYTES {
                return Err(TooLong);
            } else {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    /// The stream has ended. Some servers leave out the empty line after their last event.
    pub fn finish(&mut self, events: &mut Vec<Vec<u8>>) -> Result<(), TooLong> {
        if !self.line.is_empty() {
            self.end_line(events)?;
        }
        self.end_line(events)
    }

    fn end_line(&mut self, events: &mut Vec<Vec<u8>>) -> Result<(), TooLong> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                events.push(data);
            }
            return Ok(());
        }
        // Comments begin with a colon, so their field has no name. Other fields say nothing of the answer.
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (&line[..], &line[line.len()..]),
        };
        if field != b"data" {
            return Ok(());
        }
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if self.data.len() + value.len() >= limits::BENCH_LINE_BYTES {
            return Err(TooLong);
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let (mut state, mut events) = (Events::default(), Vec::new());
        for piece in pieces {
            state.push(piece, &mut events).unwrap();
        }
        state.finish(&mut events).unwrap();
        events.into_iter().map(|data| String::from_utf8(data).unwrap()).collect()
    }

    const STREAM: &str = ": hello\n\nevent: x\nid: 7\ndata: {\"a\": \"é\"}\n\ndata:one\ndata:  two\n\n\
                          retry: 3\n\ndata\n\ndata: [DONE]";

    #[test]
    fn the_cut_never_matters() {
        let want = ["{\"a\": \"é\"}", "one\n two", "", "[DONE]"];
        for ends in ["\n", "\r\n", "\r"] {
            let bytes = STREAM.replace('\n', ends).into_bytes();
            assert_eq!(read(&[&bytes]), want, "{ends:?}");
            for cut in 0..=bytes.len() {
                let (a, b) = bytes.split_at(cut);
                assert_eq!(read(&[a, b]), want, "{ends:?} cut at {cut}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(&single), want, "{ends:?}");
        }
    }

    #[test]
    fn nothing_grows_without_end() {
        let (mut state, mut events) = (Events::default(), Vec::new());
        let long = vec![b'x'; limits::BENCH_LINE_BYTES + 1];
        assert_eq!(state.push(&long, &mut events), Err(TooLong));
        let (mut state, part) =
            (Events::default(), [b"data:".to_vec(), vec![b'x'; 1 << 16], b"\n".to_vec()].concat());
        let results: Vec<_> = (0..64).map(|_| state.push(&part, &mut events)).collect();
        assert!(results.contains(&Err(TooLong)), "an event of many lines is bounded too");
    }
}
