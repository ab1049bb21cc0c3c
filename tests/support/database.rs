//! A Postgres database of its own for a test.

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

use super::block_on;

/// On the server of `POSTGRES_URL`; dropped at the end.
pub struct Database {
    pub url: url::Url,
    server: url::Url,
}

impl Database {
    /// `None`, and a word about it, where there is no server.
    pub fn create() -> Option<Self> {
        let Ok(server) = std::env::var("POSTGRES_URL") else {
            eprintln!("skipped: POSTGRES_URL names no server");
            return None;
        };
        let server: url::Url = server.parse().expect("a URL");
        let mut url = server.clone();
        url.set_path(&format!("test_{}", uuid::Uuid::now_v7().simple()));
        let database = Database { url, server };
        database.on_server("CREATE DATABASE", "");
        Some(database)
    }

    fn on_server(&self, act: &str, options: &str) {
        let statement = format!("{act} {} {options}", self.url.path().trim_start_matches('/'));
        block_on(async {
            let server: PgPool =
                PgPoolOptions::new().max_connections(1).connect(self.server.as_str()).await.expect("the server");
            sqlx::query(AssertSqlSafe(statement)).execute(&server).await.expect(act);
        });
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.on_server("DROP DATABASE", "WITH (FORCE)");
        }
    }
}
