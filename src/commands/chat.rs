//! `caravan chat`: asks a model of a running cluster, once or in a conversation.
//!
//! Must never keep what was said beyond its own process.

use std::io::{BufRead, IsTerminal, Read, Write};

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::ChatArgs;
use crate::client::Client;

/// A message that is longer is refused by every cluster.
const MESSAGE_BYTES: u64 = caravan_core::limits::HTTP_BODY_BYTES as u64;

struct Conversation {
    client: Client,
    model: String,
    max_tokens: u32,
    temperature: f64,
    messages: Vec<Value>,
}

pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.http);
    let model = match args.model {
        Some(model) => model,
        None => first_model(&client)?,
    };
    let system = args.system.map(|text| json!({"role": "system", "content": text}));
    let messages: Vec<Value> = system.into_iter().collect();
    let (max_tokens, temperature) = (args.max_tokens, args.temperature);
    let mut conversation = Conversation { client, model, max_tokens, temperature, messages };
    match args.prompt {
        Some(prompt) => conversation.say(&prompt),
        None => conversation.read_all(),
    }
}

fn first_model(client: &Client) -> anyhow::Result<String> {
    let list = client.ask("/v1/models")?;
    let first = list.pointer("/data/0/id").and_then(Value::as_str).map(str::to_owned);
    first.context("the cluster has no model yet; see `caravan status`")
}

impl Conversation {
    /// A message a line until standard input ends.
    fn read_all(&mut self) -> anyhow::Result<()> {
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            eprintln!("talking with {}; /new begins again, /quit or ctrl-D ends", self.model);
        }
        let kept = self.messages.len();
        let mut input = std::io::stdin().lock();
        loop {
            if terminal {
                eprint!("> ");
            }
            let mut line = String::new();
            let count = input
                .by_ref()
                .take(MESSAGE_BYTES)
                .read_line(&mut line)
                .context("can't read standard input")?;
            match line.trim() {
                _ if count == 0 => return Ok(()),
                "/quit" => return Ok(()),
                "/new" => self.messages.truncate(kept),
                "" => {}
                // A person may go on after an error, a program must be told by the exit code.
                text => match self.say(text) {
                    Err(error) if terminal => eprintln!("error: {error:#}"),
                    result => result?,
                },
            }
        }
    }

    /// Asks, and prints the answer as it comes. An answer that failed is no part of the conversation.
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        match self.answer() {
            Ok(answer) => {
                self.messages.push(json!({"role": "assistant", "content": answer}));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    fn answer(&self) -> anyhow::Result<String> {
        let request = json!({
            "model": self.model,
            "messages": self.messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": true,
        });
        let mut answer = String::new();
        let mut cut = false;
        let mut out = std::io::stdout().lock();
        let result = self.client.stream("/v1/chat/completions", &request, &mut |event| {
            let choice = &event["choices"][0];
            if let Some(piece) = choice["delta"]["content"].as_str() {
                answer.push_str(piece);
                out.write_all(piece.as_bytes())
                    .and_then(|()| out.flush())
                    .context("can't write the answer")?;
            }
            cut |= choice["finish_reason"] == "length";
            Ok(())
        });
        if !answer.is_empty() {
            writeln!(out).context("can't write the answer")?;
        }
        result?;
        if cut {
            eprintln!("(the answer reached its greatest length; --max-tokens sets another)");
        }
        Ok(answer)
    }
}
