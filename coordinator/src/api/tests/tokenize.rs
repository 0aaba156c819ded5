//! `/tokenize` and `/detokenize`.

use serde_json::{Value, json};

use super::fake::speaking;
use super::post;

#[tokio::test]
async fn texts_and_conversations_are_tokenised() {
    let (_fake, router) = speaking("ok");
    let reply = post(&router, "/tokenize", json!({"model": "tiny", "prompt": "hé"})).await;
    let wanted = json!({"count": 3, "max_model_len": 64, "tokens": [104, 0xc3, 0xa9], "token_strs": null});
    assert_eq!(reply.json(), wanted);
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"messages": messages, "return_token_strs": true});
    let reply = post(&router, "/tokenize", body).await.json();
    assert_eq!(reply["token_strs"], json!(["u", ":", "h", "i", "\n"]));
}

#[tokio::test]
async fn tokens_become_text_again() {
    let (_fake, router) = speaking("ok");
    let body = json!({"model": "tiny", "tokens": [104, 0xc3, 0xa9, 257]});
    assert_eq!(post(&router, "/detokenize", body).await.json(), json!({"prompt": "héone "}));
}

#[tokio::test]
async fn no_pipeline_is_needed() {
    let (fake, router) = speaking("ok");
    fake.edit(|state| state.plan.pipelines.clear());
    let reply = post(&router, "/tokenize", json!({"prompt": "a"})).await;
    assert_eq!(reply.json()["count"], 1);
    fake.edit(|state| state.models.clear());
    let reply = post(&router, "/tokenize", json!({"prompt": "a"})).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["param"]), (503, &Value::Null));
}
