//! `caravan bench http`: a load on any server with an OpenAI API, and what came of it.
//!
//! Must never pass over requests that failed: they are counted by kind beside the figures.

use std::time::Duration;

use anyhow::bail;

use crate::UsageError;
use crate::bench::ask::Target;
use crate::bench::load::{self, Load, Outcome, Pace};
use crate::bench::spread::Spread;
use crate::cli::HttpArgs;
use crate::term::{Term, print, table};

pub fn run(args: &HttpArgs) -> anyhow::Result<()> {
    let target = Target {
        url: checked(&args.url)?,
        model: args.model.clone(),
        chat: args.api == "chat",
        max_tokens: args.max_tokens,
        ignore_eos: args.ignore_eos,
        timeout: Duration::from_secs(args.timeout),
        stall: Duration::from_secs(args.stall),
    };
    let pace = args.rate.map_or(Pace::Clients(args.clients), Pace::Rate);
    let load = Load { pace, requests: args.requests, prompt_words: args.prompt_tokens, seed: args.seed };
    let term = Term::new();
    if let Err(failure) = load::warm_up(&target, load, args.warm_up) {
        bail!(
            "{} does not answer the first request ({failure}); nothing was measured, asking again is safe",
            args.url
        );
    }
    let bar = term.steps("requests", load.requests.into());
    let outcome = load::run(&target, load, &|done| bar.set(done));
    bar.done();
    if let Some(failure) = outcome.failures.first() {
        let (failed, all) = (outcome.failures.len(), load.requests);
        term.line(&format!("{failed} of {all} requests failed; the first: {failure}"));
    }
    if args.json {
        print(&format!("{}\n", outcome.report(load)))?;
    } else {
        print(&shown(&outcome, load))?;
    }
    if outcome.answers.is_empty() {
        bail!("no request was answered: look at the server, then ask again");
    }
    Ok(())
}

/// An address of HTTP, without its last slash.
fn checked(url: &str) -> anyhow::Result<String> {
    let parsed = url.parse::<ureq::http::Uri>().ok();
    let good =
        parsed.is_some_and(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")));
    if !good {
        return Err(UsageError(format!("{url:?} is not an address such as http://127.0.0.1:8080/v1")).into());
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn shown(outcome: &Outcome, load: Load) -> String {
    let report = outcome.report(load);
    let number = |key: &str| report[key].as_f64().map_or("-".to_owned(), |number| format!("{number:.1}"));
    let pace = match load.pace {
        Pace::Clients(clients) => format!("{clients} clients"),
        Pace::Rate(rate) => format!("{rate} requests a second, by chance"),
    };
    let errors: Vec<String> =
        outcome.errors().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let errors = if errors.is_empty() { String::new() } else { format!(" ({})", errors.join(", ")) };
    let counted = report["tokens_counted_by"].as_str().unwrap_or("-");
    let facts = [
        ("load", pace),
        ("requests answered", format!("{} of {}{errors}", outcome.answers.len(), load.requests)),
        ("output tokens a second", format!("{} (counted by {counted})", number("output_tokens_per_s"))),
        ("requests a second", number("requests_per_s")),
        ("prompt tokens, mean", number("prompt_tokens")),
        ("sent late, at most", format!("{} ms", outcome.late_ms)),
    ];
    let facts: Vec<Vec<String>> = facts.map(|(name, value)| vec![name.to_owned(), value]).to_vec();
    let head = ["MILLISECONDS", "P50", "P90", "P99", "LEAST", "MOST"].map(str::to_owned).to_vec();
    let times = [
        ("to the first token", outcome.first_ms()),
        ("between parts", outcome.gaps_ms()),
        ("whole answer", outcome.total_ms()),
    ];
    let rows: Vec<Vec<String>> =
        [head].into_iter().chain(times.into_iter().map(|(name, times)| row(name, &times))).collect();
    format!("{}\n{}", table(&facts), table(&rows))
}

fn row(name: &str, times: &Spread) -> Vec<String> {
    let numbers =
        [times.percentile(50), times.percentile(90), times.percentile(99), times.min(), times.max()];
    let words = numbers.map(|number| number.map_or("-".to_owned(), |number| format!("{number:.1}")));
    [name.to_owned()].into_iter().chain(words).collect()
}
