//! `caravan status`: who is in the cluster, and which layers are where.
//!
//! Must never change anything: it only asks.

use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::client::Client;
use crate::term::{print, size, table};

pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.http);
    let cluster = client.ask("/admin/v1/cluster")?;
    let workers = client.ask("/admin/v1/workers")?;
    let plan = client.ask("/admin/v1/plan")?;
    let (status, ready) = client.get("/readyz")?;
    if args.json {
        let ready = json!({"ready": status == 200, "detail": ready});
        let all = json!({"ready": ready, "cluster": cluster, "workers": workers, "plan": plan});
        return print(&format!("{all}\n"));
    }
    let detail = ready.get("detail").and_then(Value::as_str).unwrap_or_default();
    let word = if status == 200 { "ready" } else { "not ready" };
    let head =
        format!("{word}: {detail}\nterm {}, epoch {}\n", shown(&cluster["term"]), shown(&cluster["epoch"]));
    let tables = [coordinators(&cluster), workers_table(&workers), plan_table(&plan)];
    print(&format!("{head}\n{}", tables.join("\n")))
}

/// A value for people: strings without quotes, `-` for what is not there.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn coordinators(cluster: &Value) -> String {
    let mut rows = vec![row(&["COORDINATOR", "STATE", "HTTP", "GRPC"])];
    rows.extend(
        items(&cluster["coordinators"])
            .map(|one| ["id", "state", "http", "grpc"].iter().map(|field| shown(&one[*field])).collect()),
    );
    table(&rows)
}

fn workers_table(workers: &Value) -> String {
    let mut rows = vec![row(&[
        "WORKER", "STATE", "ADDRESS", "DEVICE", "THREADS", "MEMORY", "LAYERS", "MS/LAYER", "PREFILL",
    ])];
    rows.extend(items(workers).map(|one| {
        let memory = |field: &str| one["memory_bytes"][field].as_u64().map_or("-".to_owned(), size);
        let held: Vec<String> = items(&one["slices"])
            .map(|slice| format!("{} {}", shown(&slice["model"]), range(&slice["layers"])))
            .collect();
        vec![
            shown(&one["id"]),
            shown(&one["state"]),
            shown(&one["addr"]),
            shown(&one["device"]),
            shown(&one["threads"]),
            format!("{} of {}", memory("used"), memory("total")),
            if held.is_empty() { "-".to_owned() } else { held.join(", ") },
            number(&one["ms_per_layer"]["decode"], 3),
            number(&one["ms_per_layer"]["prefill"], 3),
        ]
    }));
    table(&rows)
}

fn plan_table(plan: &Value) -> String {
    let mut rows = vec![row(&["PIPELINE", "DRIVER", "STAGES", "PREDICTED", "MEASURED"])];
    for model in items(&plan["models"]) {
        let name = shown(&model["model"]);
        if items(&model["pipelines"]).next().is_none() {
            rows.push(row(&[&name, "-", "no pipeline yet", "-", "-"]));
        }
        for pipeline in items(&model["pipelines"]) {
            let stages: Vec<String> = items(&pipeline["stages"])
                .map(|stage| {
                    format!(
                        "{} {} {}",
                        shown(&stage["worker"]),
                        range(&stage["layers"]),
                        shown(&stage["state"])
                    )
                })
                .collect();
            rows.push(vec![
                shown(&pipeline["id"]),
                shown(&pipeline["driver"]),
                stages.join(" > "),
                format!("{} tok/s", number(&pipeline["predicted_tokens_per_s"], 1)),
                format!("{} tok/s", number(&pipeline["measured_tokens_per_s"], 1)),
            ]);
        }
    }
    table(&rows)
}

/// `[0,15)` as layers are written everywhere: the first is in it, the end is not.
fn range(layers: &Value) -> String {
    format!("[{},{})", shown(&layers[0]), shown(&layers[1]))
}

fn number(value: &Value, digits: usize) -> String {
    value.as_f64().map_or("-".to_owned(), |number| format!("{number:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_shows_stages_in_order_and_models_without_a_pipeline() {
        let plan = json!({"epoch": 7, "models": [
            {"model": "a", "layers": 30, "pipelines": [{"id": "a/0", "driver": "1", "predicted_tokens_per_s": 10.55,
             "measured_tokens_per_s": 9, "stages": [
                {"worker": "w1", "layers": [0, 14], "state": "ready"},
                {"worker": "w2", "layers": [14, 30], "state": "loading"}]}]},
            {"model": "b", "layers": 2, "pipelines": []}]});
        let text = plan_table(&plan);
        assert!(text.contains("w1 [0,14) ready > w2 [14,30) loading"), "{text}");
        assert!(text.contains("9.0 tok/s") && text.contains("no pipeline yet"), "{text}");
    }

    #[test]
    fn tables_survive_any_shape() {
        for odd in [json!(null), json!([]), json!({"coordinators": 3}), json!([{}]), json!("x")] {
            let text = format!("{}{}{}", coordinators(&odd), workers_table(&odd), plan_table(&odd));
            assert!(text.contains("WORKER"));
        }
    }
}
