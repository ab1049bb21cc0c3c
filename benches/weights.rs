//! `POST /v1/weights`, as a trainer asks: one request after the other over one connection, each a step of its own.
//!
//! `cargo bench --bench weights [-- REQUESTS SAMPLES]`. The server is in this process, on loopback; with one and with four clients.
//! Prints one JSON line each: milliseconds from the first byte sent to the last one received. A line before says how much of a core
//! the parts of an answer take, which a busy machine does not change.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    for clients in [1, 4] {
        let address = server.address;
        let began = Instant::now();
        let threads: Vec<_> = (0..clients)
            .map(|client| std::thread::spawn(move || ask(address, client, clients, requests / clients, samples)))
            .collect();
        let mut times: Vec<f64> = threads.into_iter().flat_map(|thread| thread.join().expect("answers")).collect();
        let seconds = began.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| (times[((times.len() - 1) as f64 * share) as usize] * 100.0).round() / 100.0;
        let line = serde_json::json!({
            "stage": "weights", "samples": samples, "clients": clients, "requests": times.len(),
            "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1.0),
            "samples_per_s": (times.len() * samples) as f64 / seconds,
        });
        println!("{line}");
    }
}

/// Milliseconds of CPU time for each part of an answer, means of 200.
fn parts(config: &Config, samples: usize) -> serde_json::Value {
    const TIMES: usize = 200;
    let weigh = LossWeight::new(config.loss_weight.settings).expect("valid");
    let body = body(0, 1, 0, samples);
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

/// Milliseconds of every request but the first hundredth, in which buffers grow.
fn ask(address: SocketAddr, client: usize, clients: usize, requests: usize, samples: usize) -> Vec<f64> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    let mut reader = BufReader::new(stream.try_clone().expect("both directions"));
    let mut times = Vec::with_capacity(requests);
    for step in 0..requests {
        let body = body(client, clients, step, samples);
        let head = format!(
            "POST /v1/weights HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let began = Instant::now();
        stream.write_all(&[head.as_bytes(), &body].concat()).expect("sent");
        let (status, answer) = receive(&mut reader);
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert!(status.contains(" 200 ") && answer.len() > samples * 20, "{status}");
    }
    times.split_off(requests / 100)
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
fn body(client: usize, clients: usize, step: usize, samples: usize) -> Vec<u8> {
    let mut state = (step * clients + client) as u64;
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
    serde_json::json!({ "run_id": format!("run-{clients}-{client}"), "step": step, "losses": rows })
        .to_string()
        .into_bytes()
}
