//! Keys and tenants at the door.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};

use super::fake::speaking;
use super::{Reply, chat, get, post, post_bytes, send};
use crate::api::auth::Peer;

const FAR: [u8; 4] = [10, 0, 0, 7];

fn from(ip: [u8; 4], mut request: Request<Body>) -> Request<Body> {
    request.extensions_mut().insert(Peer((ip, 4_000).into()));
    request
}

fn ask(header: Option<(&str, String)>) -> Request<Body> {
    let mut request = post_bytes("/v1/chat/completions", chat("hello", json!({})).to_string());
    if let Some((name, value)) = header {
        let name: axum::http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    from(FAR, request)
}

fn code(reply: &Reply) -> (u16, Value) {
    (reply.status.as_u16(), reply.json()["error"]["code"].clone())
}

#[tokio::test]
async fn without_keys_only_this_machine_is_served() {
    let (_fake, router) = speaking("hi");
    let reply = post(&router, "/v1/chat/completions", chat("hello", json!({}))).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(code(&send(&router, ask(None)).await), (401, json!("no_api_keys")));
    for path in ["/v1/models", "/v1/nothing"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(send(&router, from(FAR, request)).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/livez", "/metrics", "/admin/v1/cluster"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(send(&router, from(FAR, request)).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_key_opens_the_door_until_it_is_revoked() {
    let (fake, router) = speaking("hi");
    let made = post(&router, "/admin/v1/keys", json!({"tenant": "t1", "name": "laptop"})).await.json();
    let (key, id) = (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned());
    assert!(!format!("{:?}", fake.commands.lock().unwrap()).contains(&key), "the key itself is kept nowhere");
    let bearer = |key: &str| Some(("authorization", format!("Bearer {key}")));

    assert_eq!(send(&router, ask(bearer(&key))).await.status, StatusCode::OK);
    assert_eq!(send(&router, ask(Some(("x-api-key", key.clone())))).await.status, StatusCode::OK);
    let mut wrong = key.clone();
    let last = if wrong.pop() == Some('0') { '1' } else { '0' };
    wrong.push(last);
    let bad = [
        wrong,
        String::new(),
        "cvk-".to_owned(),
        format!("cvk-{id}"),
        format!("cvk-{id}-"),
        "x".repeat(9_000),
    ];
    for bad in bad {
        assert_eq!(code(&send(&router, ask(bearer(&bad))).await), (401, json!("invalid_api_key")), "{bad}");
    }
    assert_eq!(code(&send(&router, ask(None)).await), (401, json!("invalid_api_key")));
    // From this machine a key is asked for too, once there is one.
    let near = post(&router, "/v1/chat/completions", chat("hello", json!({}))).await;
    assert_eq!(code(&near), (401, json!("invalid_api_key")));

    let listed = get(&router, "/admin/v1/keys").await;
    assert_eq!(listed.json()["data"][0]["tenant"], "t1");
    assert!(!listed.text.contains(&key));
    let revoke = |id: &str| Request::delete(format!("/admin/v1/keys/{id}")).body(Body::empty()).unwrap();
    assert_eq!(send(&router, revoke(&id)).await.status, StatusCode::OK);
    assert_eq!(code(&send(&router, revoke("none")).await), (404, json!("key_not_found")));
    assert_eq!(code(&send(&router, ask(bearer(&key))).await), (401, json!("invalid_api_key")));
}

#[tokio::test]
async fn keys_are_managed_from_this_machine_only() {
    let (fake, router) = speaking("hi");
    let create = post_bytes("/admin/v1/keys", json!({"tenant": "t1"}).to_string());
    assert_eq!(code(&send(&router, from(FAR, create)).await), (403, json!("not_local")));
    let list = Request::get("/admin/v1/keys").body(Body::empty()).unwrap();
    assert_eq!(code(&send(&router, from(FAR, list)).await), (403, json!("not_local")));
    let mut page = post_bytes("/admin/v1/keys", json!({"tenant": "t1"}).to_string());
    page.headers_mut().insert("sec-fetch-site", "cross-site".parse().unwrap());
    assert_eq!(code(&send(&router, page).await), (403, json!("cross_site")));
    for body in [
        json!({}),
        json!({"tenant": ""}),
        json!({"tenant": "a b"}),
        json!({"tenant": 7}),
        json!({"tenant": "t", "x": 1}),
    ] {
        let reply = post(&router, "/admin/v1/keys", body.clone()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
    }
    assert!(fake.commands.lock().unwrap().is_empty());
}
