//! Asks the cluster as a client would, over the streaming API, and keeps what came.
//!
//! Must never repair a stream: a gap or a repeat has to show in the answer.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub seed: u64,
    /// 0 is greedy.
    pub temperature: f64,
    pub top_p: f64,
}

/// What came over the stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub text: String,
    pub tokens: Vec<u64>,
    pub finish: Option<String>,
}

/// The answer and when its pieces came.
pub struct Timed {
    pub answer: Answer,
    pub longest_gap: Duration,
}

impl Question {
    fn body(&self, model: &str) -> Value {
        json!({
            "model": model, "prompt": self.prompt, "max_tokens": self.max_tokens, "seed": self.seed,
            "temperature": self.temperature, "top_p": self.top_p, "ignore_eos": true,
            "stream": true, "return_token_ids": true,
        })
    }
}

/// Name of the only model of a test cluster.
pub fn model(http: &str) -> String {
    let models = super::harness::get(&format!("{http}/v1/models")).expect("the model list");
    models["data"][0]["id"].as_str().expect("a model").to_owned()
}

/// Streams an answer. `on_token` is called with the number of tokens so far.
pub fn ask(http: &str, question: &Question, mut on_token: impl FnMut(usize)) -> Result<Timed, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(300)))
        .build()
        .into();
    let mut response = agent
        .post(format!("{http}/v1/completions"))
        .send_json(question.body(&model(http)))
        .map_err(|error| error.to_string())?;
    if response.status().as_u16() != 200 {
        let body = response.body_mut().read_to_string().unwrap_or_default();
        return Err(format!("{}: {body}", response.status()));
    }
    let mut answer = Answer::default();
    let (mut last, mut longest_gap) = (Instant::now(), Duration::ZERO);
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line.map_err(|error| format!("{error} after {} tokens", answer.tokens.len()))?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        longest_gap = longest_gap.max(last.elapsed());
        last = Instant::now();
        if data == "[DONE]" {
            return Ok(Timed { answer, longest_gap });
        }
        take(&mut answer, data)?;
        on_token(answer.tokens.len());
    }
    Err(format!("the stream ended without [DONE] after {} tokens", answer.tokens.len()))
}

/// Streams any request; every chunk of the answer. `on_chunk` is called with the number of chunks so far.
pub fn chunks(url: &str, body: &Value, mut on_chunk: impl FnMut(usize)) -> Result<Vec<Value>, String> {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.timeout_global(Some(Duration::from_secs(300))).build().into();
    let mut response = agent.post(url).send_json(body).map_err(|error| error.to_string())?;
    if response.status().as_u16() != 200 {
        let body = response.body_mut().read_to_string().unwrap_or_default();
        return Err(format!("{}: {body}", response.status()));
    }
    let mut chunks: Vec<Value> = Vec::new();
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line.map_err(|error| format!("{error} after {} chunks", chunks.len()))?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(chunks);
        }
        let chunk: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
        if !chunk["error"].is_null() {
            return Err(chunk["error"].to_string());
        }
        chunks.push(chunk);
        on_chunk(chunks.len());
    }
    Err(format!("the stream ended without [DONE] after {} chunks", chunks.len()))
}

fn take(answer: &mut Answer, data: &str) -> Result<(), String> {
    let value: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
    if !value["error"].is_null() {
        return Err(value["error"].to_string());
    }
    let choice = &value["choices"][0];
    answer.text.push_str(choice["text"].as_str().unwrap_or_default());
    for token in choice["token_ids"].as_array().into_iter().flatten() {
        answer.tokens.push(token.as_u64().ok_or("token ids are numbers")?);
    }
    if let Some(finish) = choice["finish_reason"].as_str() {
        answer.finish = Some(finish.to_owned());
    }
    Ok(())
}

/// Tokens of running text, for prompts.
pub fn prose() -> Vec<u32> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/worker/tests/data/prose.tokens.json");
    let bytes = std::fs::read(file).expect("prose tokens");
    serde_json::from_slice(&bytes).expect("a list of tokens")
}

/// 24 prompts of 1 to 600 tokens, from different places of the text.
pub fn prompts() -> Vec<Vec<u32>> {
    let prose = prose();
    let lengths =
        [1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 47, 63, 64, 65, 96, 127, 128, 129, 200, 255, 321, 450, 600];
    lengths
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let start = (i * 61) % (prose.len() - 600);
            prose[start..start + length].to_vec()
        })
        .collect()
}

/// The prompts, greedy and seeded.
pub fn questions(max_tokens: u32) -> Vec<Question> {
    let mut questions = Vec::new();
    for (i, prompt) in prompts().into_iter().enumerate() {
        let seed = 1000 + i as u64;
        let greedy = Question { prompt, max_tokens, seed, temperature: 0.0, top_p: 1.0 };
        questions.push(Question { temperature: 0.8, top_p: 0.9, ..greedy.clone() });
        questions.push(greedy);
    }
    questions
}

/// Asks all questions, `clients` at a time, spread over the doors; answers in the order of the questions.
pub fn ask_all(doors: &[String], questions: &[Question], clients: usize) -> Vec<Answer> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let answers = std::sync::Mutex::new(vec![Answer::default(); questions.len()]);
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(question) = questions.get(i) else { return };
                    let door = &doors[i % doors.len()];
                    let timed = ask(door, question, |_| {}).expect("an answer");
                    answers.lock().expect("no client failed")[i] = timed.answer;
                }
            });
        }
    });
    answers.into_inner().expect("no client failed")
}
