//! Files as they come: every format and compression, folders, patterns, an object store; the same documents from all of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/files.rs"]
mod support;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use futures::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use support::{SELECTED, Sandbox, lines, strings};

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

/// As `zstd --long=31` writes it, but with the content as it is: of a frame what a window of 2 GiB was meant for.
fn zstd_with_long_window(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, (31 - 10) << 3];
    let mut blocks = content.chunks(100_000).peekable();
    while let Some(block) = blocks.next() {
        let header = (block.len() as u32) << 3 | u32::from(blocks.peek().is_none());
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

fn csv(rows: &[Value]) -> String {
    let field =
        |row: &Value, name: &str| format!("\"{}\"", row[name].as_str().unwrap_or_default().replace('"', "\"\""));
    let row = |row: &Value| format!("{},{},{}\r\n", field(row, "source"), field(row, "text"), field(row, "id"));
    "source,text,id\r\n".to_owned() + &rows.iter().map(row).collect::<String>()
}

/// The raw documents in every form that has a name of its own.
fn write_all_forms(sandbox: &Sandbox) -> Vec<&'static str> {
    sandbox.write_other_formats();
    let raw = std::fs::read(sandbox.path("raw.jsonl")).unwrap();
    let cut = raw.len() / 2 + raw[raw.len() / 2..].iter().position(|b| *b == b'\n').unwrap() + 1;
    let (first, second) = raw.split_at(cut);
    let csv = csv(&lines(&sandbox.path("raw.jsonl")));
    let write = |name: &str, content: &[u8]| {
        std::fs::create_dir_all(sandbox.path(name).parent().unwrap()).unwrap();
        std::fs::write(sandbox.path(name), content).unwrap();
    };
    let zstd = |content: &[u8]| zstd::encode_all(content, 1).unwrap();
    // The cut lies in the middle of a line in some, as whoever joins compressed files may have it.
    let (head, tail) = raw.split_at(cut - 7);
    write("members.jsonl.gz", &[gzip(head), gzip(tail)].concat());
    write("frames.jsonl.zst", &[zstd(head), zstd(tail)].concat());
    write("long.jsonl.zst", &zstd_with_long_window(&raw));
    write("bom.jsonl", &[b"\xEF\xBB\xBF", &raw[..]].concat());
    write("bom.jsonl.gz", &gzip(&[b"\xEF\xBB\xBF", &raw[..]].concat()));
    write("raw.csv", csv.as_bytes());
    write("raw.csv.gz", &gzip(csv.as_bytes()));
    write("bom.csv.zst", &zstd(&[b"\xEF\xBB\xBF", csv.as_bytes()].concat()));
    write("folder/1.jsonl.gz", &gzip(first));
    write("folder/2.jsonl", second);
    write("folder/ignored.txt", b"nothing");
    write("deep/a/1.jsonl", first);
    write("deep/b/2.jsonl.zst", &zstd(second));
    vec![
        "raw.jsonl.gz",
        "raw.jsonl.zst",
        "raw.parquet",
        "members.jsonl.gz",
        "frames.jsonl.zst",
        "long.jsonl.zst",
        "bom.jsonl",
        "bom.jsonl.gz",
        "raw.csv",
        "raw.csv.gz",
        "bom.csv.zst",
        "folder",
        "folder/[12].jsonl*",
        "deep/**/*.jsonl*",
    ]
}

fn scores(sandbox: &Sandbox, input: &str, threads: u32) -> Vec<Value> {
    sandbox.succeed(&format!("score --model model.wnw --input {input} --threads {threads} --out scores.jsonl"));
    lines(&sandbox.path("scores.jsonl"))
}

#[test]
fn every_form_gives_the_same_documents() {
    let sandbox = Sandbox::new();
    let forms = write_all_forms(&sandbox);
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let expected = scores(&sandbox, "raw.jsonl", 1);
    for form in forms {
        for threads in [1, 3] {
            assert_eq!(scores(&sandbox, form, threads), expected, "{form}");
        }
    }
    sandbox.succeed("select --input raw.jsonl --model model.wnw --count 50 --out from-jsonl");
    sandbox.succeed("select --input raw.csv --model model.wnw --count 50 --out from-csv");
    // Its chunks are found again by their places.
    sandbox.succeed("select --input bom.jsonl --model model.wnw --count 50 --out from-marked");
    for column in ["id", "text", "source"] {
        let of = |out: &str| strings(&sandbox.path(out).join(SELECTED), column);
        assert_eq!(of("from-csv"), of("from-jsonl"), "{column}");
        assert_eq!(of("from-marked"), of("from-jsonl"), "{column}");
    }
}

#[test]
fn questions_are_answered_from_every_form() {
    let sandbox = Sandbox::new();
    let forms = write_all_forms(&sandbox);
    let ask = |form: &str| {
        let question =
            "SELECT source, count(*) AS n, sum(length(text)) AS chars FROM input GROUP BY source ORDER BY source";
        let output = Command::new(env!("CARGO_BIN_EXE_winnowd"))
            .args(["query", "--input", form, "--format", "json", question])
            .current_dir(sandbox.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{form}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = ask("raw.jsonl");
    assert!(expected.lines().count() > 3, "{expected}");
    for form in forms {
        assert_eq!(ask(form), expected, "{form}");
    }
}

#[test]
fn mistakes_are_told() {
    let sandbox = Sandbox::new();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    std::fs::write(sandbox.path("bad.csv"), "id,text\n1,a\n2\n3,c\n").unwrap();
    std::fs::write(sandbox.path("none.csv"), "id,body\n1,a\n").unwrap();
    std::fs::write(sandbox.path("twice.csv"), "id,text,id\n1,a,2\n").unwrap();
    std::fs::create_dir_all(sandbox.path("nested/deeper")).unwrap();
    for (input, problem) in [
        ("bad.csv", "record 2: "),
        ("none.csv", "no column `text`; its columns are `id`, `body`"),
        ("twice.csv", "two columns are called `id`"),
        ("nothing-*.jsonl", "no file matches this"),
        ("nested", "it holds folders, whose files FOLDER/**/*.parquet would name"),
        ("s3:///x", "expected s3://BUCKET/KEY"),
        ("raw.jsonl --store-option nonsense=1", "--store-option nonsense: is no setting of a store"),
        ("raw.jsonl --store-option aws_region", "--store-option aws_region: expected KEY=VALUE"),
    ] {
        let said = sandbox.refuse(&format!("score --model model.wnw --out scores.jsonl --input {input}"));
        assert!(said.contains(problem), "{input}: {said}");
    }
    let said = sandbox.succeed("score --model model.wnw --out scores.jsonl --skip-bad-lines --input bad.csv");
    assert!(said.contains("2 documents, 1 bad lines passed over"), "{said}");
}

/// A prefix of its own in the bucket `test` of `S3_ENDPOINT`.
struct Prefix {
    endpoint: String,
    name: String,
    store: Box<dyn ObjectStore>,
}

impl Prefix {
    fn create() -> Option<Self> {
        let Ok(endpoint) = std::env::var("S3_ENDPOINT") else {
            eprintln!("skipped: S3_ENDPOINT names no store");
            return None;
        };
        let store = AmazonS3Builder::new()
            .with_bucket_name("test")
            .with_endpoint(&endpoint)
            .with_region("us-east-1")
            .with_access_key_id("winnowd")
            .with_secret_access_key("secret-of-winnowd")
            .with_allow_http(true);
        let store = Box::new(store.build().unwrap());
        Some(Prefix { endpoint, name: uuid::Uuid::now_v7().to_string(), store })
    }

    fn put(&self, from: &Path, key: &str) {
        // As it stands: `from` would write `%` in another way.
        let key = object_store::path::Path::parse(format!("{}/{key}", self.name)).unwrap();
        let content = std::fs::read(from).unwrap();
        runtime().block_on(self.store.put(&key, content.into())).unwrap();
    }

    fn url(&self, key: &str) -> String {
        format!("s3://test/{}/{key}", self.name)
    }

    fn options(&self) -> String {
        format!("--store-option aws_endpoint={} --store-option aws_allow_http=true", self.endpoint)
    }

    /// As whoever has credentials in the environment runs it.
    fn run(&self, sandbox: &Sandbox, arguments: &[&str], secret: &str) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_winnowd"))
            .args(arguments)
            .envs([("AWS_ACCESS_KEY_ID", "winnowd"), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_REGION", "us-east-1")])
            .current_dir(sandbox.folder.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        let prefix = object_store::path::Path::from(self.name.as_str());
        runtime().block_on(async {
            let found: Vec<_> = self.store.list(Some(&prefix)).collect().await;
            for object in found.into_iter().flatten() {
                let _ = self.store.delete(&object.location).await;
            }
        });
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_folder_in_an_object_store_is_selected_from() {
    const SECRET: &str = "secret-of-winnowd";
    let Some(prefix) = Prefix::create() else { return };
    let sandbox = Sandbox::new();
    write_all_forms(&sandbox);
    for (file, key) in [
        ("raw.parquet", "parquet/1.parquet"),
        ("raw.parquet", "parquet/2 %.parquet"),
        ("raw.jsonl", "jsonl/raw.jsonl"),
        ("frames.jsonl.zst", "zst/raw.jsonl.zst"),
        ("members.jsonl.gz", "gz/a/raw.jsonl.gz"),
        ("raw.csv", "csv/raw.csv"),
        ("target.jsonl", "target.jsonl"),
    ] {
        prefix.put(&sandbox.path(file), key);
    }
    let run = |arguments: &str, secret: &str| {
        let arguments = format!("{arguments} {}", prefix.options());
        prefix.run(&sandbox, &arguments.split_whitespace().collect::<Vec<_>>(), secret)
    };
    let succeed = |arguments: &str| {
        let (code, stdout, stderr) = run(arguments, SECRET);
        assert_eq!(code, Some(0), "{arguments}: {stderr}");
        stdout
    };
    // The same selection as from files, whose places in the input are the same.
    std::fs::create_dir(sandbox.path("parquet")).unwrap();
    for name in ["1", "2 %"] {
        std::fs::copy(sandbox.path("raw.parquet"), sandbox.path(&format!("parquet/{name}.parquet"))).unwrap();
    }
    let select = "select --fraction 0.1 --length-normalise --temperature auto";
    sandbox.succeed(&format!("{select} --input parquet --target target.jsonl --out from-files"));
    let (folder, target) = (prefix.url("parquet"), prefix.url("target.jsonl"));
    succeed(&format!("{select} --input {folder}/ --target {target} --out from-store"));
    let ids = |out: &str| strings(&sandbox.path(out).join(SELECTED), "id");
    assert!(ids("from-store").len() > 100);
    assert_eq!(ids("from-store").len(), ids("from-files").len());

    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let expected = scores(&sandbox, "raw.jsonl", 1);
    for key in ["jsonl", "jsonl/raw.jsonl", "zst/*.zst", "**/raw.jsonl.gz", "csv/", "parquet/1.parquet", "parquet/2*"] {
        succeed(&format!("score --model model.wnw --input {} --threads 3 --out scores.jsonl", prefix.url(key)));
        assert_eq!(lines(&sandbox.path("scores.jsonl")), expected, "{key}");
    }
    for key in ["jsonl", "zst/raw.jsonl.zst", "csv/raw.csv", "parquet/2 %.parquet"] {
        let input = prefix.url(key);
        let store = prefix.options();
        let mut arguments = vec!["query", "--input", &input, "--format", "json", "SELECT count(*) AS n FROM input"];
        arguments.extend(store.split_whitespace());
        let (code, stdout, stderr) = prefix.run(&sandbox, &arguments, SECRET);
        assert_eq!((code, stdout.trim()), (Some(0), format!("{{\"n\":{}}}", expected.len()).as_str()), "{stderr}");
    }

    let score = "score --model model.wnw --out refused.jsonl --input";
    let (code, _, stderr) = run(&format!("{score} {}", prefix.url("nothing")), SECRET);
    assert!(code == Some(64) && stderr.contains("there is no such object"), "{stderr}");
    let (code, _, stderr) = run(&format!("{score} {}", prefix.url("gz")), SECRET);
    assert!(code == Some(64) && stderr.contains("it holds folders"), "{stderr}");
    let (code, _, stderr) = run(&format!("{score} {}", prefix.url("jsonl")), "wrong");
    assert!(code == Some(69) && stderr.contains("the store fails: ") && !stderr.contains(SECRET), "{stderr}");
    assert!(!sandbox.path("refused.jsonl").exists());
}
