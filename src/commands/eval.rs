//! `caravan eval`: perplexity of a text, and the distance of the engine from the f32 path.
//!
//! Must never evaluate fewer positions than were asked for.

use std::path::Path;

use anyhow::Context;
use caravan_coordinator::text::TextModel;
use caravan_core::limits;
use caravan_worker::evaluate::{Distance, Scope, evaluate};
use caravan_worker::local::LocalModel;
use serde_json::json;

use crate::UsageError;
use crate::catalogue;
use crate::cli::EvalArgs;
use crate::commands::worker::usable_cores;
use crate::term::{Term, print, table};

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let text = read(&args.text)?;
    let term = Term::new();
    let file = catalogue::resolve(&args.model, &args.data, &term)?;
    let model = LocalModel::open(&file.path)?.with_kv(args.kv);
    let words = TextModel::from_gguf(model.gguf())?;
    let most = model.config().context;
    if args.context > most {
        return Err(
            UsageError(format!("the model's context is {most} tokens: --context can't be more")).into()
        );
    }
    let tokens = words.encode(&text, false);
    let threads = args.threads.map_or_else(usable_cores, |threads| threads as usize);
    let scope = Scope { positions: args.positions, context: args.context, threads };
    let bar = term.steps("positions", args.positions.into());
    let progress = |share: f64| bar.set((share * f64::from(args.positions)) as u64);
    let found = evaluate(&model, &tokens, words.bos(), scope, &progress)?;
    bar.done();
    if args.json { print(&format!("{}\n", line(&found))) } else { print(&table(&rows(&found))) }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let wrong = || format!("the text {} can't be read", path.display());
    let bytes = path.metadata().with_context(wrong)?.len();
    if bytes > limits::EVAL_TEXT_BYTES {
        let most = limits::EVAL_TEXT_BYTES;
        anyhow::bail!("the text {} has {bytes} bytes, more than {most}: take a part of it", path.display());
    }
    std::fs::read_to_string(path).with_context(wrong)
}

fn line(found: &Distance) -> serde_json::Value {
    json!({
        "positions": found.positions,
        "perplexity": found.perplexity,
        "mean_kl": found.mean_kl,
        "top1_agreement": found.top1_agreement,
        "reference_perplexity": found.reference_perplexity,
        "max_kl": found.max_kl,
    })
}

fn rows(found: &Distance) -> Vec<Vec<String>> {
    let facts = [
        ("positions", found.positions.to_string()),
        ("perplexity, as served", format!("{:.4}", found.perplexity)),
        ("perplexity, f32 path", format!("{:.4}", found.reference_perplexity)),
        ("mean KL divergence", format!("{:.3e}", found.mean_kl)),
        ("largest KL divergence", format!("{:.3e}", found.max_kl)),
        ("top-1 agreement", format!("{:.3} %", 100.0 * found.top1_agreement)),
    ];
    facts.map(|(name, value)| vec![name.to_owned(), value]).to_vec()
}
