//! Downloads from a small server that cuts connections, changes its file, or has no ranges.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::*;
use crate::catalogue::part::Verdict;
use crate::catalogue::{Model, Source};
use crate::term::Term;

/// How the server answers one request.
#[derive(Clone)]
struct Answer {
    content: Arc<Vec<u8>>,
    etag: &'static str,
    /// The connection is cut after this many bytes of the body.
    cut_after: usize,
    ranges: bool,
    status: Option<u16>,
}

impl Answer {
    fn whole(content: &Arc<Vec<u8>>) -> Answer {
        Answer { content: content.clone(), etag: "\"1\"", cut_after: usize::MAX, ranges: true, status: None }
    }

    fn cut(content: &Arc<Vec<u8>>, cut_after: usize) -> Answer {
        Answer { cut_after, ..Answer::whole(content) }
    }

    /// Reads a request, answers it, and says from which byte it asked.
    fn give(&self, mut stream: TcpStream) -> usize {
        let mut start = 0;
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let line = line.unwrap().to_lowercase();
            if let Some(range) = line.strip_prefix("range: bytes=") {
                start = range.trim_end_matches('-').parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let total = self.content.len();
        let from = if self.ranges { start } else { 0 };
        let body = &self.content[from..];
        let head = match (self.status, from) {
            (Some(status), _) => format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n"),
            (None, 0) => format!("HTTP/1.1 200 OK\r\netag: {}\r\ncontent-length: {total}\r\n\r\n", self.etag),
            (None, _) => format!(
                "HTTP/1.1 206 Partial Content\r\netag: {}\r\ncontent-range: bytes {from}-{}/{total}\r\n\
                 content-length: {}\r\n\r\n",
                self.etag,
                total - 1,
                body.len()
            ),
        };
        stream.write_all(head.as_bytes()).unwrap();
        if self.status.is_none() {
            let _ = stream.write_all(&body[..body.len().min(self.cut_after)]);
        }
        start
    }
}

/// A server that gives these answers in turn. Also gives the bytes at which requests began.
fn serve(answers: Vec<Answer>) -> (String, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/model.gguf", listener.local_addr().unwrap());
    let starts = Arc::new(Mutex::new(Vec::new()));
    let seen = starts.clone();
    std::thread::spawn(move || {
        for answer in answers {
            let start = answer.give(listener.accept().unwrap().0);
            seen.lock().unwrap().push(start);
        }
    });
    (url, starts)
}

fn content(seed: u8) -> Arc<Vec<u8>> {
    Arc::new((0..3_000_000u32).map(|index| (index % 251) as u8 ^ seed).collect())
}

fn model_of(content: &[u8]) -> Model {
    Model {
        name: "m".to_owned(),
        aliases: Vec::new(),
        file: "m.gguf".to_owned(),
        bytes: content.len() as u64,
        sha256: Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect(),
        licence: "CC0".to_owned(),
        sources: vec![Source::Path { path: "/nowhere".into() }],
    }
}

fn get(dir: &Path, url: &str, model: &Model) -> (anyhow::Result<bool>, Verdict, u64) {
    let mut part = Part::open(&dir.join("m.gguf.hub.part"), model).unwrap();
    let result = fetch(url, &mut part, &Term::new().bytes("m", None));
    let verdict = part.check(&model.sha256).unwrap();
    (result, verdict, part.written())
}

#[test]
fn a_cut_connection_is_gone_on_with_from_the_same_byte() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(0);
    let (url, starts) = serve(vec![Answer::cut(&content, 1_500_000), Answer::whole(&content)]);
    let (result, verdict, _) = get(dir.path(), &url, &model_of(&content));
    assert!(result.unwrap(), "joined of two answers");
    assert_eq!(verdict, Verdict::Good);
    let starts = starts.lock().unwrap().clone();
    assert!(starts[0] == 0 && starts[1] > 0 && starts[1] <= 1_500_000, "{starts:?}");
}

#[test]
fn another_process_goes_on_where_the_first_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(0);
    let model = model_of(&content);
    // The first process gives up after three attempts without a byte.
    let dead = Answer { status: Some(503), ..Answer::whole(&content) };
    let answers =
        vec![Answer::cut(&content, 1_000_000), dead.clone(), dead.clone(), dead, Answer::whole(&content)];
    let (url, starts) = serve(answers);
    let (result, _, written) = get(dir.path(), &url, &model);
    assert!(result.unwrap_err().to_string().contains("503"));
    assert!(written > 0, "what came was kept");
    let (result, verdict, _) = get(dir.path(), &url, &model);
    assert!(result.unwrap());
    assert_eq!(verdict, Verdict::Good);
    assert_eq!(starts.lock().unwrap()[4] as u64, written);
}

#[test]
fn a_file_that_changed_meanwhile_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (content(1), content(0));
    let changed = Answer { etag: "\"2\"", ..Answer::whole(&new) };
    let (url, _) = serve(vec![Answer::cut(&old, 1_000_000), changed.clone(), changed]);
    let (result, verdict, _) = get(dir.path(), &url, &model_of(&new));
    result.unwrap();
    assert_eq!(verdict, Verdict::Good);
}

#[test]
fn a_server_without_ranges_is_asked_for_everything() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(0);
    let cut = Answer { ranges: false, ..Answer::cut(&content, 1_000_000) };
    let whole = Answer { ranges: false, ..Answer::whole(&content) };
    let (url, _) = serve(vec![cut, whole]);
    let (result, verdict, _) = get(dir.path(), &url, &model_of(&content));
    result.unwrap();
    assert_eq!(verdict, Verdict::Good);
}

#[test]
fn a_file_of_another_length_or_none_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(0);
    let missing = Answer { status: Some(404), ..Answer::whole(&content) };
    let (url, starts) = serve(vec![missing, Answer::whole(&content)]);
    let (result, _, written) = get(dir.path(), &url, &model_of(&content));
    assert!(result.unwrap_err().to_string().contains("404"));
    assert_eq!(written, 0);
    let (result, ..) = get(dir.path(), &url, &model_of(&content[1..]));
    assert!(result.unwrap_err().to_string().contains("another file"));
    assert_eq!(starts.lock().unwrap().len(), 2);
}

#[test]
fn nobody_there_is_said_with_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(0);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (result, ..) = get(dir.path(), &format!("http://{free}/x"), &model_of(&content));
    assert!(result.unwrap_err().to_string().contains(&free.to_string()));
}

#[test]
fn ranges_are_read_strictly() {
    assert!(begins_at("bytes 100-199/200", 100));
    assert!(!begins_at("bytes 0-199/200", 100));
    assert!(!begins_at("bytes */200", 0));
}
