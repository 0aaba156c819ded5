//! Generated requests against the document that the cluster serves, by a program of others: no server error, no
//! answer outside its schema, and a stream of someone else that does not notice.
//!
//! `CARAVAN_TEST_SCHEMATHESIS` names the program (`scripts/test` sets it). Must never depend on the real
//! model: a tiny random one answers in no time.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use caravan_core::gguf::synthetic::SyntheticModel;
use caravan_core::model::{Family, ModelConfig, TensorType};

use super::ask::{Question, ask};
use super::harness::{Cluster, Options, full};

/// Refusals of what others asked for are not failures; these are.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_schema_conformance,response_headers_conformance";

fn tiny() -> SyntheticModel {
    let config = ModelConfig {
        family: Family::Llama,
        layers: 2,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        ffn: 256,
        vocab: 331,
        context: 128,
        ..ModelConfig::default()
    };
    SyntheticModel { config, kinds: vec![TensorType::Q8_0], seed: 3 }
}

#[test]
fn generated_requests_break_nothing() {
    let program = std::env::var("CARAVAN_TEST_SCHEMATHESIS")
        .expect("CARAVAN_TEST_SCHEMATHESIS must name the program; scripts/test sets it");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("random.gguf");
    std::fs::write(&file, tiny().writer().finish()).expect("written");
    let cluster = Cluster::start(Options::new(2, 1).model(&file));
    let canary =
        Question { prompt: (3..40).collect(), max_tokens: 60, seed: 9, temperature: 0.9, top_p: 1.0 };
    let wanted = ask(&cluster.http, &canary, |_| {}).expect("the canary sings").answer;
    let over = AtomicBool::new(false);
    let (output, sung) = std::thread::scope(|scope| {
        let singing = scope.spawn(|| {
            let mut sung = 0;
            while !over.load(Ordering::Relaxed) {
                let answer = ask(&cluster.http, &canary, |_| {}).expect("the canary sings").answer;
                assert_eq!(answer, wanted, "song {sung}");
                sung += 1;
            }
            sung
        });
        // Nine operations share the requests.
        let examples = if full() { "2300" } else { "20" };
        let output = Command::new(&program)
            .args(["run", &format!("{}/openapi.json", cluster.http), "--url", &cluster.http])
            .args(["--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-examples", examples])
            .args(["--seed", "1", "--workers", "2", "--request-timeout", "60", "--no-color"])
            .args(["--no-shrink", "--continue-on-failure", "--generation-database", "none"])
            .args(["--warnings", "off", "--suppress-health-check", "all"])
            .current_dir(folder.path())
            .output();
        over.store(true, Ordering::Relaxed);
        (output.expect("the program runs"), singing.join().expect("every song was the same"))
    });
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}");
    assert!(output.status.success(), "{report}{}", String::from_utf8_lossy(&output.stderr));
    assert!(sung > 3, "the canary sang {sung} times");
}
