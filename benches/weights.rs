//! `POST /v1/weights`, as a trainer asks: one request after the other over one connection, each a step of its own.
//!
//! `cargo bench --bench weights [-- REQUESTS SAMPLES]`. The servers are in this process, on loopback; with one and with four clients.
//! Prints one JSON line each: milliseconds from the first byte sent to the last one received, and between, of the same clients, those
//! of what is no work of ours: the same bytes to a server that sends them back, and a batch of one sample. All three take turns,
//! request by request, so that a slow moment of the machine hits all. A line before says how much of a core the parts of an answer
//! take, which a busy machine does not change.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use axum::serve::ListenerExt;
use winnowd::config::Config;
use winnowd::score::{BatchWeights, GlobalBatch, LossWeight};
use winnowd::telemetry::{HttpServer, Telemetry, WeightsEndpoint};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (requests, samples) = (numbers.next().unwrap_or(2_000), numbers.next().unwrap_or(4_096));
    let config = Config::from_toml("http.listen = \"127.0.0.1:0\"\nloss_weight.burn_in_steps = 0", []).expect("valid");
    let telemetry = Arc::new(Telemetry::new("bench", Duration::from_secs(60)));
    let weigh = LossWeight::new(config.loss_weight.settings).expect("valid");
    let endpoint = Arc::new(WeightsEndpoint::new(&config, weigh, telemetry.clone()));
    println!("{}", parts(&config, samples));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let server = runtime.block_on(HttpServer::start(&config.http, telemetry, endpoint)).expect("a port");
    let echo = runtime.block_on(echo());
    for clients in [1, 4] {
        let kinds = [
            Kind { stage: "weights", address: server.address, samples },
            Kind { stage: "weights/echo", address: echo, samples },
            Kind { stage: "weights/one-sample", address: server.address, samples: 1 },
        ];
        let threads: Vec<_> = (0..clients)
            .map(|client| std::thread::spawn(move || ask(&kinds, client, clients, requests / clients)))
            .collect();
        let of_clients: Vec<[Vec<f64>; 3]> =
            threads.into_iter().map(|thread| thread.join().expect("answers")).collect();
        for (number, kind) in kinds.iter().enumerate() {
            let mut times: Vec<f64> = of_clients.iter().flat_map(|times| &times[number]).copied().collect();
            times.sort_by(f64::total_cmp);
            let at = |share: f64| (times[((times.len() - 1) as f64 * share) as usize] * 100.0).round() / 100.0;
            let line = serde_json::json!({
                "stage": kind.stage, "samples": kind.samples, "clients": clients, "requests": times.len(),
                "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1.0),
            });
            println!("{line}");
        }
    }
}

/// What is asked of whom.
#[derive(Clone, Copy)]
struct Kind {
    stage: &'static str,
    address: SocketAddr,
    samples: usize,
}

/// A server of the same make that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("no delay"));
    let router =
        Router::new().route("/v1/weights", post(|body: Bytes| async { body })).layer(DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Milliseconds of CPU time for each part of an answer, means of 200.
fn parts(config: &Config, samples: usize) -> serde_json::Value {
    const TIMES: usize = 200;
    let weigh = LossWeight::new(config.loss_weight.settings).expect("valid");
    let body = body("parts", 0, samples);
    let decoder = config.losses.decoder();
    let decode = || GlobalBatch::of_one(decoder.decode(Some(&body)).expect("a report"));
    let batch = decode();
    let weights = BatchWeights::of(&weigh, batch.clone()).expect("weights");
    let cpu_ms = |part: &dyn Fn()| {
        let before = thread_cpu_seconds();
        (0..TIMES).for_each(|_| part());
        ((thread_cpu_seconds() - before) * 1e6 / TIMES as f64).round() / 1e3
    };
    serde_json::json!({
        "stage": "weights/parts", "samples": samples, "request_bytes": body.len(),
        "decode_ms": cpu_ms(&|| drop(black_box(decode()))),
        "digest_ms": cpu_ms(&|| {
            black_box(batch.digest());
        }),
        "weigh_ms": cpu_ms(&|| drop(black_box(BatchWeights::of(&weigh, batch.clone())))),
        "encode_ms": cpu_ms(&|| drop(black_box(serde_json::to_string(&weights)))),
    })
}

fn thread_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ').next().expect("a number").parse::<f64>().expect("nanoseconds") / 1e9
}

/// Milliseconds of every request of each kind but the first hundredth, in which buffers grow.
fn ask(kinds: &[Kind; 3], client: usize, clients: usize, requests: usize) -> [Vec<f64>; 3] {
    let mut connections = kinds.map(|kind| {
        let stream = TcpStream::connect(kind.address).expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        (BufReader::new(stream.try_clone().expect("both directions")), stream)
    });
    let mut times = kinds.map(|_| Vec::with_capacity(requests));
    for step in 0..requests {
        for ((kind, (reader, stream)), times) in kinds.iter().zip(&mut connections).zip(&mut times) {
            let body = body(&format!("{}-{clients}-{client}", kind.stage), step, kind.samples);
            let head = format!(
                "POST /v1/weights HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                kind.address,
                body.len()
            );
            let request = [head.as_bytes(), &body].concat();
            let began = Instant::now();
            stream.write_all(&request).expect("sent");
            let (status, answer) = receive(reader);
            times.push(began.elapsed().as_secs_f64() * 1e3);
            assert!(status.contains(" 200 ") && answer.len() > kind.samples * 20, "{status}");
        }
    }
    times.map(|mut of_kind| of_kind.split_off(requests / 100))
}

fn receive(reader: &mut BufReader<TcpStream>) -> (String, Vec<u8>) {
    let (mut status, mut length) = (String::new(), 0);
    reader.read_line(&mut status).expect("a status");
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().expect("a number");
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut answer = vec![0; length];
    reader.read_exact(&mut answer).expect("an answer");
    (status, answer)
}

/// Losses around 3 nats, of as many digits as a trainer writes.
fn body(run: &str, step: usize, samples: usize) -> Vec<u8> {
    let mut state = step as u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let rows: Vec<_> = (0..samples)
        .map(|i| {
            let loss = 1.5 + uniform() + uniform() + uniform();
            serde_json::json!({ "id": format!("documents/3/{}", step * samples + i), "loss": loss, "n_tokens": 512 })
        })
        .collect();
    serde_json::json!({ "run_id": run, "step": step, "losses": rows }).to_string().into_bytes()
}
