//! The HTTP client against answers that a coordinator may give, and some that none should.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::net::TcpListener;

use super::*;

/// Gives one answer to one request.
fn serve(answer: &str) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = listener.local_addr().unwrap().to_string();
    let answer = answer.to_owned();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // A request of these tests fits one read after its head; the rest of it may stay unread.
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut length, mut line) = (0, String::new());
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0u8; length];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    Client::new(&base)
}

fn events(answer: &str) -> (anyhow::Result<()>, Vec<Value>) {
    let client = serve(answer);
    let mut seen = Vec::new();
    let result = client.stream("/v1/chat/completions", &Value::Null, &mut |event| {
        seen.push(event.clone());
        Ok(())
    });
    (result, seen)
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

#[test]
fn events_come_in_order_until_done() {
    let (result, seen) =
        events(&format!("{STREAM}: alive\n\ndata: {{\"a\": 1}}\n\ndata:{{\"a\":2}}\n\ndata: [DONE]\n\n"));
    result.unwrap();
    assert_eq!(seen, [serde_json::json!({"a": 1}), serde_json::json!({"a": 2})]);
}

#[test]
fn an_answer_that_ends_in_the_middle_is_no_answer() {
    let (result, seen) = events(&format!("{STREAM}data: {{\"a\": 1}}\n\n"));
    assert!(result.unwrap_err().to_string().contains("middle"));
    assert_eq!(seen.len(), 1);
}

#[test]
fn errors_are_told_in_the_clusters_words() {
    let (result, _) = events(&format!("{STREAM}data: {{\"error\": {{\"message\": \"no pipeline\"}}}}\n\n"));
    assert!(result.unwrap_err().to_string().contains("no pipeline"));
    let body = "{\"error\": {\"message\": \"queue full\", \"code\": \"queue_full\"}}";
    let (result, _) = events(&format!("HTTP/1.1 429 No\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    let error = result.unwrap_err();
    assert_eq!(error.downcast_ref::<Refused>().unwrap().status, 429);
    assert!(error.to_string().contains("queue full"));
}

#[test]
fn a_cluster_that_is_not_there_is_said_with_the_way_out() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = Client::new(&format!("http://{free}/v1/")).ask("/admin/v1/cluster").unwrap_err().to_string();
    assert!(said.contains(&free.to_string()) && said.contains("caravan up"), "{said}");
}

#[test]
fn an_answer_that_is_not_json_is_shown_as_it_is() {
    let (status, body) = serve("HTTP/1.1 404 No\r\ncontent-length: 5\r\n\r\nnope\n").get("/x").unwrap();
    assert_eq!((status, body), (404, Value::String("nope".to_owned())));
}
