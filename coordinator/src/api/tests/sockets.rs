//! Over real sockets: slow, silent, rude and departing clients beside one that must not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::chat;
use super::fake::{Beat, Fake, say, speak};
use crate::api::serve::serve;

struct Server {
    fake: Arc<Fake>,
    at: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

async fn server(fake: Fake) -> Server {
    let fake = Arc::new(fake);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        let _ = stopped.await;
    };
    let serving = tokio::spawn(serve(listener, fake.router(), shutdown));
    Server { fake, at, stop, serving }
}

fn request(path: &str, body: &[u8], length: usize) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

async fn connect(at: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes));
    let _ = read.await.expect("an answer in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn ask(at: SocketAddr) -> String {
    let body = chat("hi", json!({})).to_string();
    read_all(connect(at, &request("/v1/chat/completions", body.as_bytes(), body.len())).await).await
}

async fn settles(what: impl Fn() -> bool) -> bool {
    for _ in 0..400 {
        if what() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_body_over_the_limit_gets_its_answer() {
    let server = server(Fake::new(|record| speak(record, "ok"))).await;
    let size = caravan_core::limits::HTTP_BODY_BYTES + 1_000_000;
    let mut stream = connect(server.at, &request("/v1/chat/completions", b"", size)).await;
    stream.write_all(&vec![b'x'; size]).await.unwrap();
    let answer = read_all(stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_too_large"));
    assert!(ask(server.at).await.contains("\"ok\""));
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let server = server(Fake::new(|record| speak(record, "ok"))).await;
    let mut stream = connect(server.at, &request("/v1/chat/completions", b"{", 1_000)).await;
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let begun = Instant::now();
    let mut answer = Vec::new();
    tokio::select! {
        () = trickle => {}
        _ = reader.read_to_end(&mut answer) => {}
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn slow_readers_do_not_disturb_others() {
    let server = server(Fake::new(|record| match record.prompt.len() {
        5 => speak(record, "ok"),
        _ => {
            let mut beats: Vec<Beat> = (0..50).flat_map(|_| say("a slow client's answer ")).collect();
            beats.push(super::fake::done(caravan_core::request::Finish::Stop));
            beats
        }
    }))
    .await;
    let body = chat("hello there", json!({"stream": true})).to_string();
    let mut slow = Vec::new();
    for _ in 0..50 {
        slow.push(connect(server.at, &request("/v1/chat/completions", body.as_bytes(), body.len())).await);
    }
    // Connections that say nothing, and half a header.
    let _silent = connect(server.at, b"").await;
    let _half = connect(server.at, b"POST /v1/chat/comp").await;
    let begun = Instant::now();
    assert!(ask(server.at).await.contains("\"ok\""));
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut byte = [0u8; 1];
    for stream in &mut slow {
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
    }
    drop(slow);
    assert!(settles(|| server.fake.open.load(Ordering::SeqCst) == 0).await);
}

#[tokio::test]
async fn a_client_that_goes_cancels_its_request() {
    let server = server(Fake::new(|_| {
        let mut beats = say("ab");
        beats.push(Beat::Hang);
        beats
    }))
    .await;
    for stream in [true, false] {
        let body = chat("hi", json!({"stream": stream})).to_string();
        let connection =
            connect(server.at, &request("/v1/chat/completions", body.as_bytes(), body.len())).await;
        assert!(settles(|| server.fake.open.load(Ordering::SeqCst) == 1).await);
        drop(connection);
        assert!(settles(|| server.fake.open.load(Ordering::SeqCst) == 0).await, "stream: {stream}");
    }
    assert_eq!(server.fake.cancelled.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn two_hundred_clients_at_once() {
    let server = server(Fake::new(|record| speak(record, "ok"))).await;
    let clients: Vec<_> = (0..200).map(|_| tokio::spawn(ask(server.at))).collect();
    for client in clients {
        assert!(client.await.unwrap().contains("\"ok\""));
    }
}

#[tokio::test]
async fn garbage_gets_a_400_and_a_closed_connection() {
    let server = server(Fake::new(|record| speak(record, "ok"))).await;
    let answer = read_all(connect(server.at, b"\x16\x03\x01 hello\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let mut huge = b"GET /livez HTTP/1.1\r\nx: ".to_vec();
    huge.extend(vec![b'y'; 100_000]);
    let answer = read_all(connect(server.at, &huge).await).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
}

#[tokio::test]
async fn shutdown_lets_short_answers_end_and_waits_for_no_one_for_ever() {
    let server = server(Fake::new(|record| {
        let mut beats = vec![Beat::Wait(300)];
        beats.extend(speak(record, "ok"));
        beats
    }))
    .await;
    let asking = tokio::spawn(ask(server.at));
    assert!(settles(|| server.fake.open.load(Ordering::SeqCst) == 1).await);
    let idle = connect(server.at, b"").await;
    let begun = Instant::now();
    server.stop.send(()).unwrap();
    assert!(asking.await.unwrap().contains("\"ok\""));
    server.serving.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(caravan_core::limits::HTTP_DRAIN_MS + 2_000));
    assert!(TcpStream::connect(server.at).await.is_err());
    drop(idle);
}
