//! The daemon with its configuration, started, stopped and killed as a process.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use futures::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectStore, ObjectStoreExt};

use winnowd::catalog::{Access, CatalogReader, ClustersCatalog, Gap, SqlCatalog, Totals};
use winnowd::config::CatalogUrl;
use winnowd::manifest::ShardManifest;
use winnowd::select::ClusterVersion;

use super::{Broker, HttpProxy, PostgresServer, Published, block_on, model_bytes, wait_for};

/// A folder with a model, a configuration, and what the daemon makes.
pub struct Deployment {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
    pub catalog: CatalogUrl,
    store: Option<Bucket>,
    /// What the daemon sees otherwise than the test: the way through a proxy.
    environment: Vec<(&'static str, String)>,
}

/// A prefix of its own in the bucket `test` of `S3_ENDPOINT`, as `tests/services/s3` starts it.
pub struct Bucket {
    endpoint: String,
    /// What the daemon takes for the endpoint.
    through: String,
    prefix: String,
}

impl Bucket {
    pub fn create() -> Option<Self> {
        let endpoint = std::env::var("S3_ENDPOINT").ok()?;
        Some(Bucket { through: endpoint.clone(), endpoint, prefix: uuid::Uuid::now_v7().to_string() })
    }

    /// The same, which the daemon reaches through a proxy only. `None`, and a word about it, where there is no store.
    pub fn behind_proxy() -> Option<(Self, HttpProxy)> {
        let Some(bucket) = Bucket::create() else {
            eprintln!("skipped: S3_ENDPOINT names no store");
            return None;
        };
        let proxy = HttpProxy::start(&bucket.endpoint);
        Some((Bucket { through: proxy.url(), ..bucket }, proxy))
    }

    fn options(endpoint: &str) -> [(&'static str, &str); 5] {
        [
            ("aws_endpoint", endpoint),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "winnowd"),
            ("aws_secret_access_key", "secret-of-winnowd"),
            ("aws_allow_http", "true"),
        ]
    }

    /// Everything below the prefix, as files.
    fn download(&self, folder: &Path) {
        let mut builder = AmazonS3Builder::new().with_bucket_name("test");
        for (key, value) in Bucket::options(&self.endpoint) {
            builder = builder.with_config(key.parse().expect("a key"), value);
        }
        let store = builder.build().expect("a store");
        block_on(async {
            let prefix = object_store::path::Path::from(self.prefix.as_str());
            let found: Vec<_> = store.list(Some(&prefix)).collect().await;
            for object in found {
                let location = object.expect("an object").location;
                let content = store.get(&location).await.expect("an object").bytes().await.expect("its bytes");
                let relative = location.as_ref().strip_prefix(self.prefix.as_str()).expect("below the prefix");
                let path = folder.join(relative.trim_start_matches('/'));
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                std::fs::write(path, content).expect("a file");
            }
        });
    }
}

impl Deployment {
    /// `extra`: further lines of TOML. The catalog is a SQLite file.
    pub fn new(broker: &Broker, extra: &str) -> Self {
        Deployment::with(broker, extra, None, None)
    }

    /// The same with a Postgres database, and with an object store instead of a folder.
    pub fn with(broker: &Broker, extra: &str, postgres: Option<&url::Url>, store: Option<Bucket>) -> Self {
        Deployment::build(broker, extra, postgres.map(|url| CatalogUrl::Postgres(url.clone())), store)
    }

    /// The daemon reaches the Postgres server, which is this test's alone, through its proxy. On a busy machine the group must
    /// not take it for dead meanwhile.
    pub fn on_server(broker: &Broker, extra: &str, server: &PostgresServer) -> Self {
        let deployment = Deployment::with(broker, extra, Some(&server.url), None);
        let url = ("WINNOWD_CATALOG__URL", server.proxied().to_string());
        Deployment { environment: vec![url, ("WINNOWD_KAFKA__SESSION_TIMEOUT", "30s".to_owned())], ..deployment }
    }

    pub fn with_catalog(broker: &Broker, extra: &str, catalog: CatalogUrl) -> Self {
        Deployment::build(broker, extra, Some(catalog), None)
    }

    fn build(broker: &Broker, extra: &str, catalog: Option<CatalogUrl>, store: Option<Bucket>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = catalog.unwrap_or_else(|| CatalogUrl::Sqlite(folder.path().join("catalog.db")));
        // As `Display` shows it, a password would be missing.
        let catalog_url = match &catalog {
            CatalogUrl::Postgres(url) => url.to_string(),
            CatalogUrl::Sqlite(_) => catalog.to_string(),
        };
        std::fs::write(folder.path().join("model.wnw"), model_bytes()).expect("a model");
        let config = folder.path().join("winnowd.toml");
        let path = folder.path().display();
        let toml = format!(
            r#"
pipeline.name = "test"
kafka.bootstrap = "{bootstrap}"
kafka.topics = ["{topic}"]
kafka.group = "{group}"
kafka.instance_id = "worker-0"
{session}
model.path = "{path}/model.wnw"
{sink}
catalog.url = "{catalog_url}"
http.listen = "127.0.0.1:0"
selection.min_tokens = 5
selection.seed = 7
window.idle_timeout = "1s"
{roll}
{extra}
"#,
            sink = match &store {
                None => format!("sink.url = \"{path}/out\""),
                Some(bucket) => {
                    let options = Bucket::options(&bucket.through)
                        .map(|(key, value)| format!("sink.options.{key} = \"{value}\""));
                    format!("sink.url = \"s3://test/{}\"\n{}", bucket.prefix, options.join("\n"))
                }
            },
            session = if extra.contains("kafka.session_timeout") { "" } else { "kafka.session_timeout = \"6s\"" },
            roll = if extra.contains("shard.max_age") { "" } else { "shard.max_age = \"500ms\"" },
            bootstrap = broker.through,
            topic = broker.topic,
            group = group(folder.path(), broker),
        );
        std::fs::write(&config, toml).expect("a configuration");
        Deployment { folder, config, catalog, store, environment: Vec::new() }
    }

    pub fn group(&self, broker: &Broker) -> String {
        group(self.folder.path(), broker)
    }

    pub fn start(&self) -> DaemonProcess {
        self.try_start().unwrap_or_else(|log| panic!("the daemon ended at once:\n{log}"))
    }

    pub fn try_start(&self) -> Result<DaemonProcess, String> {
        DaemonProcess::start(&self.config, &self.folder.path().join("log"), None, &self.environment())
    }

    /// A daemon that decides no window before it is full, however fast it is: it is still at work on the last ones when it is
    /// killed.
    pub fn start_without_end(&self) -> DaemonProcess {
        self.start_with(&[("WINNOWD_WINDOW__IDLE_TIMEOUT", "1d")]).expect("the daemon starts")
    }

    /// With more in its environment, such as a crash point; `None` if that was before it served.
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Option<DaemonProcess> {
        DaemonProcess::start(&self.config, &self.folder.path().join("log"), None, environment).ok()
    }

    /// One of several workers, with a log of its own.
    pub fn start_worker(&self, name: &str) -> DaemonProcess {
        self.start_worker_with(name, &[])
    }

    /// The same with more in its environment, such as a crash point.
    pub fn start_worker_with(&self, name: &str, environment: &[(&str, &str)]) -> DaemonProcess {
        let environment = [&self.environment(), environment].concat();
        let started = DaemonProcess::start(&self.config, &self.worker_log(name), Some(name), &environment);
        started.unwrap_or_else(|log| panic!("{name} ended at once:\n{log}"))
    }

    /// `winnowd run`, which ends by itself.
    pub fn run_to_end(&self) -> Output {
        let mut command = winnowd_command();
        command.args(["run", "-c"]).arg(&self.config).envs(self.environment());
        // Files, so that however much it says, nobody has to read it meanwhile.
        let [mut out, mut err] = [(); 2].map(|()| tempfile::tempfile().expect("a file"));
        let [to_out, to_err] = [&out, &err].map(|file| file.try_clone().expect("a file"));
        let child = command.stdout(to_out).stderr(to_err).spawn().expect("winnowd starts");
        // Killed when it does not.
        let mut process = DaemonProcess { child, http: String::new() };
        let status = wait_for("winnowd run to end by itself", || process.child.try_wait().expect("a status"));
        let [stdout, stderr] = [&mut out, &mut err].map(|file| {
            let mut said = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut said)).expect("what it said");
            said
        });
        Output { status, stdout, stderr }
    }

    fn environment(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(key, value)| (*key, value.as_str())).collect()
    }

    pub fn worker_log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("log-{name}"))
    }

    pub fn winnowd(&self, arguments: &[&str]) -> Output {
        winnowd(&[arguments, &["-c", &self.config.to_string_lossy()]].concat())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What is published, as soon as trainers see it: `manifest.jsonl` follows the catalog.
    pub fn published(&self) -> Published {
        wait_for("manifest.jsonl to have as many lines as the catalog has shards", || {
            if let Some(bucket) = &self.store {
                bucket.download(&self.folder.path().join("out"));
            }
            Published::read(self.folder.path(), &self.catalog)
        })
    }

    /// What was never decided and is passed over.
    pub fn gaps(&self) -> Vec<Gap> {
        block_on(async {
            let catalog = SqlCatalog::open(&self.catalog, Access::Read).await.expect("the catalog");
            let gaps = catalog.gaps("test").await.expect("gaps");
            catalog.close().await;
            gaps
        })
    }

    /// A version of the clusters of the stream; `None`: there is none, or it is forgotten.
    pub fn clusters(&self, version: i64) -> Option<ClusterVersion> {
        block_on(async {
            let catalog = SqlCatalog::open(&self.catalog, Access::Read).await.expect("the catalog");
            let clusters = catalog.clusters("test", version).await.expect("clusters");
            catalog.close().await;
            clusters
        })
    }

    /// Published ones with rows, in order of publication.
    pub fn shards(&self) -> Vec<ShardManifest> {
        block_on(async {
            let catalog = SqlCatalog::open(&self.catalog, Access::Read).await.expect("the catalog");
            let shards = catalog.shards("test").await.expect("shards");
            catalog.close().await;
            shards.into_iter().map(|(_, manifest)| manifest).collect()
        })
    }

    /// Windows and gaps of every partition follow one another, from 0 to its end.
    pub fn assert_covered(&self, ends: &[i64]) {
        let mut parts: Vec<_> = self.published().windows.iter().map(|w| (w.at.partition, w.interval)).collect();
        parts.extend(self.gaps().iter().map(|gap| (gap.at.partition, gap.interval)));
        parts.sort_by_key(|(partition, interval)| (*partition, interval.from));
        let mut next = vec![0; ends.len()];
        for (partition, interval) in parts {
            let from = std::mem::replace(&mut next[partition as usize], interval.to);
            assert_eq!(interval.from, from, "partition {partition}");
        }
        assert_eq!(next, ends);
    }

    /// What the catalog has summed up, or nothing yet.
    pub fn totals(&self) -> Totals {
        block_on(async {
            let catalog = SqlCatalog::open(&self.catalog, Access::Read).await.ok()?;
            let totals = catalog.totals("test").await.ok().flatten();
            catalog.close().await;
            totals
        })
        .unwrap_or_default()
    }
}

/// A consumer group of one deployment.
fn group(folder: &Path, broker: &Broker) -> String {
    format!("{}-{}", broker.topic, folder.file_name().expect("a name").to_string_lossy().replace('.', ""))
}

pub fn winnowd(arguments: &[&str]) -> Output {
    winnowd_command().args(arguments).output().expect("winnowd runs")
}

/// Without what the tests are told by the environment, which is no configuration.
pub fn winnowd_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_winnowd"));
    command.env_remove("WINNOWD_TEST_SEED").env_remove("WINNOWD_TEST_STORM");
    command
}

/// `winnowd run`, killed when dropped.
pub struct DaemonProcess {
    pub child: Child,
    pub http: String,
}

impl DaemonProcess {
    fn start(config: &Path, log: &Path, worker: Option<&str>, environment: &[(&str, &str)]) -> Result<Self, String> {
        let offset = std::fs::metadata(log).map_or(0, |m| m.len() as usize);
        let file = File::options().create(true).append(true).open(log).expect("a log");
        let mut child = winnowd_command()
            .args(["run", "-c"])
            .arg(config)
            .envs(worker.map(|name| ("WINNOWD_KAFKA__INSTANCE_ID", name)))
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("winnowd starts");
        let http = wait_for("the port", || {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let new = text.get(offset..).unwrap_or_default();
            if let Some(at) = new.find("on http://") {
                let rest = &new[at + "on http://".len()..];
                // In JSON more follows.
                return rest.find(['\n', '"']).map(|end| Ok(rest[..end].trim().to_owned()));
            }
            child
                .try_wait()
                .expect("a status")
                .map(|_| Err(std::fs::read_to_string(log).unwrap_or_default()[offset..].to_owned()))
        })?;
        Ok(DaemonProcess { child, http })
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        http_get(&self.http, path).expect("an answer")
    }

    /// One value of `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|l| l.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no `{series}` in:\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub fn kill_9(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("it is dead");
    }

    /// SIGTERM, then its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        wait_for("the daemon's end", || self.child.try_wait().expect("a status")).code()
    }

    /// Peak resident size in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    http(address, &format!("GET {path}"), "", b"")
}

/// `request`: method and path; `headers`: lines with their ends. The length of the body is among them.
pub fn http(address: &str, request: &str, headers: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
    http_by_name(address, address, request, headers, body)
}

/// The same under a name, as a browser asks that was led there.
pub fn http_by_name(
    address: &str,
    host: &str,
    request: &str,
    headers: &str,
    body: &[u8],
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(stream, "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{length}{headers}\r\n")?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}
