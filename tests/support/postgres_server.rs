//! A Postgres server of a test's own, to be stopped, killed and paused, which the daemon reaches through a proxy.

use std::process::Command;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use super::{DEADLINE, TcpProxy, block_on};

/// Started by `tests/services/postgres`; ended when dropped.
pub struct PostgresServer {
    folder: tempfile::TempDir,
    /// Past the proxy.
    pub url: url::Url,
    pub proxy: TcpProxy,
}

impl PostgresServer {
    /// `None`, and a word about it, where there is no Postgres.
    pub fn start() -> Option<Self> {
        if std::env::var_os("POSTGRES_URL").is_none() {
            eprintln!("skipped: POSTGRES_URL names no server");
            return None;
        }
        let is_installed = Command::new(SCRIPT).arg("installed").status().expect("the script runs").success();
        assert!(is_installed || std::env::var("CI").as_deref() != Ok("true"), "not installed: tests/services/postgres");
        if !is_installed {
            eprintln!("skipped: a server of a test's own needs `tests/services/postgres install`");
            return None;
        }
        let (folder, proxy) = (tempfile::tempdir().expect("a folder"), TcpProxy::start());
        let data = folder.path().join("postgres");
        let url: url::Url = super::service(SCRIPT, &["start", &data.to_string_lossy()]).parse().expect("a URL");
        proxy.forward_to(&format!("127.0.0.1:{}", url.port().expect("a port")));
        Some(PostgresServer { folder, url, proxy })
    }

    /// The way that the daemon takes.
    pub fn proxied(&self) -> url::Url {
        let mut url = self.url.clone();
        url.set_port(Some(self.proxy.address().port())).expect("a port");
        url
    }

    fn run(&self, arguments: &[&str]) {
        let data = self.folder.path().join("postgres").to_string_lossy().into_owned();
        let arguments = [&arguments[..1], &[data.as_str()], &arguments[1..]].concat();
        super::service(SCRIPT, &arguments);
    }

    /// `fast` ends transactions, `immediate` is a crash.
    pub fn stop(&self, mode: &str) {
        self.run(&["stop", mode]);
    }

    pub fn start_again(&self) {
        self.run(&["start"]);
    }

    /// `STOP` or `CONT`, to all its processes.
    pub fn signal(&self, name: &str) {
        self.run(&["signal", name]);
    }

    pub async fn begin(&self) -> Stranger {
        let mut connection = PgConnection::connect(self.url.as_str()).await.expect("a connection");
        let pid = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut connection).await.expect("a row").get(0);
        connection.execute("BEGIN").await.expect("a transaction");
        Stranger { connection, pid, url: self.url.clone() }
    }

    /// Carries out a statement as the superuser; gives the number of rows.
    pub fn execute(&self, sql: &str) -> u64 {
        block_on(async {
            let mut connection = PgConnection::connect(self.url.as_str()).await.expect("the server");
            let done = connection.execute(AssertSqlSafe(sql.to_owned())).await.expect(sql).rows_affected();
            connection.close().await.expect("the end");
            done
        })
    }
}

/// A transaction of somebody else.
pub struct Stranger {
    connection: PgConnection,
    pid: i32,
    url: url::Url,
}

impl Stranger {
    pub async fn execute(&mut self, sql: &'static str) {
        self.connection.execute(sql).await.expect(sql);
    }

    /// Waits until another transaction waits for a lock that this one holds.
    pub async fn until_waited_for(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        // Beside the transaction: within one, the view shows what it showed first.
        let mut observer = PgConnection::connect(self.url.as_str()).await.expect("a connection");
        loop {
            let waiting = sqlx::query("SELECT 1 FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))");
            if !waiting.bind(self.pid).fetch_all(&mut observer).await.expect("an answer").is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "nobody waits for the lock");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn rollback(mut self) {
        self.execute("ROLLBACK").await;
        self.connection.close().await.expect("the end");
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let data = self.folder.path().join("postgres");
        for arguments in [["signal", "CONT"], ["stop", "immediate"]] {
            // One that has ended already cannot be stopped.
            let _ = Command::new(SCRIPT).arg(arguments[0]).arg(&data).arg(arguments[1]).output();
        }
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/postgres");
