//! The two databases, and the little that is asked of them: statements with numbered parameters (`$1`, `$2`, …) and typed
//! values, so that every statement of the catalog is written once.

use std::io::{Error as IoError, ErrorKind};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{
    Column, ConnectOptions, Connection, PgPool, Postgres, Row as _, Sqlite, SqlitePool, Transaction, TypeInfo, ValueRef,
};
use tokio::time::timeout;

/// For the answer to one statement: longer than Postgres itself works on it, so that only a server or a network that has
/// gone silent is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// For the reason why there is no connection.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// A parameter, or what stands in a column. A parameter that is null still has a type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(Option<i64>),
    Double(Option<f64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

pub enum Database {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction that writes.
pub enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// One row of an answer.
#[derive(Debug)]
pub struct Row(Vec<Value>);

/// Binds `$parameters` to a statement, whatever the database.
macro_rules! bound {
    ($database:ty, $sql:expr, $parameters:expr) => {{
        let mut query = sqlx::query::<$database>($sql);
        for parameter in $parameters {
            query = match parameter {
                Value::Integer(value) => query.bind(value),
                Value::Double(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

/// Waits for an answer of Postgres, but not for ever: a network can end without a word.
async fn answer<T>(of: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER_TIMEOUT, of).await.unwrap_or_else(|_| Err(silence(ANSWER_TIMEOUT)))
}

pub fn silence(waited: Duration) -> sqlx::Error {
    IoError::new(ErrorKind::TimedOut, format!("no answer within {} s", waited.as_secs())).into()
}

/// The same on any connection of a pool. Where there was none, the error says why, which the pool has forgotten.
async fn answer_of<T>(pool: &PgPool, of: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match answer(of).await {
        Err(sqlx::Error::PoolTimedOut) => Err(why_unconnected(pool).await),
        answer => answer,
    }
}

async fn why_unconnected(pool: &PgPool) -> sqlx::Error {
    match timeout(REASON_TIMEOUT, pool.connect_options().connect()).await {
        Ok(Err(reason)) => reason,
        Ok(Ok(connection)) => {
            let _ = timeout(REASON_TIMEOUT, connection.close()).await;
            IoError::new(ErrorKind::TimedOut, "no connection in time, but it answers again now").into()
        }
        Err(_) => silence(REASON_TIMEOUT),
    }
}

impl Database {
    /// SQLite takes its only write lock at once, so that a transaction never fails half-way for another writer. Postgres
    /// locks rows as they are written; at READ COMMITTED, an update that waited for another sees what that one left.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            Database::Sqlite(pool) => Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Database::Postgres(pool) => {
                let begun = pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED");
                Tx::Postgres(answer_of(pool, begun).await?)
            }
        })
    }

    /// One statement, a transaction of its own.
    pub async fn rows(&self, sql: &'static str, parameters: Vec<Value>) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Database::Sqlite(pool) => {
                let rows = bound!(Sqlite, sql, parameters).fetch_all(pool).await?;
                rows.iter().map(of_sqlite).collect()
            }
            Database::Postgres(pool) => {
                let rows = answer_of(pool, bound!(Postgres, sql, parameters).fetch_all(pool)).await?;
                rows.iter().map(of_postgres).collect()
            }
        }
    }

    pub async fn row(&self, sql: &'static str, parameters: Vec<Value>) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.rows(sql, parameters).await?.pop())
    }

    pub async fn execute(&self, sql: &'static str, parameters: Vec<Value>) -> Result<(), sqlx::Error> {
        match self {
            Database::Sqlite(pool) => bound!(Sqlite, sql, parameters).execute(pool).await.map(drop),
            Database::Postgres(pool) => {
                answer_of(pool, bound!(Postgres, sql, parameters).execute(pool)).await.map(drop)
            }
        }
    }
}

impl Tx {
    pub async fn rows(&mut self, sql: &'static str, parameters: Vec<Value>) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Tx::Sqlite(tx) => {
                let rows = bound!(Sqlite, sql, parameters).fetch_all(&mut **tx).await?;
                rows.iter().map(of_sqlite).collect()
            }
            Tx::Postgres(tx) => {
                let rows = answer(bound!(Postgres, sql, parameters).fetch_all(&mut **tx)).await?;
                rows.iter().map(of_postgres).collect()
            }
        }
    }

    pub async fn row(&mut self, sql: &'static str, parameters: Vec<Value>) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.rows(sql, parameters).await?.pop())
    }

    /// Gives the number of rows that were written.
    pub async fn execute(&mut self, sql: &'static str, parameters: Vec<Value>) -> Result<u64, sqlx::Error> {
        match self {
            Tx::Sqlite(tx) => Ok(bound!(Sqlite, sql, parameters).execute(&mut **tx).await?.rows_affected()),
            Tx::Postgres(tx) => Ok(answer(bound!(Postgres, sql, parameters).execute(&mut **tx)).await?.rows_affected()),
        }
    }

    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Tx::Sqlite(tx) => tx.commit().await,
            Tx::Postgres(tx) => answer(tx.commit()).await,
        }
    }

    pub async fn rollback(self) -> Result<(), sqlx::Error> {
        match self {
            Tx::Sqlite(tx) => tx.rollback().await,
            Tx::Postgres(tx) => answer(tx.rollback()).await,
        }
    }
}

/// SQLite's values have types of their own, whatever the column's.
fn of_sqlite(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let value = |i: usize| {
        let raw = row.try_get_raw(i)?;
        if raw.is_null() {
            return Ok(Value::Integer(None));
        }
        Ok(match raw.type_info().name() {
            "INTEGER" | "BOOLEAN" => Value::Integer(row.try_get(i)?),
            "REAL" => Value::Double(row.try_get(i)?),
            "TEXT" => Value::Text(row.try_get(i)?),
            "BLOB" => Value::Bytes(row.try_get(i)?),
            other => return Err(unexpected(row.column(i).name(), other)),
        })
    };
    (0..row.len()).map(value).collect::<Result<_, _>>().map(Row)
}

fn of_postgres(row: &PgRow) -> Result<Row, sqlx::Error> {
    let value = |i: usize| {
        Ok(match row.column(i).type_info().name() {
            "INT8" => Value::Integer(row.try_get(i)?),
            "INT4" => Value::Integer(row.try_get::<Option<i32>, _>(i)?.map(i64::from)),
            "BOOL" => Value::Integer(row.try_get::<Option<bool>, _>(i)?.map(i64::from)),
            "FLOAT8" => Value::Double(row.try_get(i)?),
            "TEXT" => Value::Text(row.try_get(i)?),
            "BYTEA" => Value::Bytes(row.try_get(i)?),
            other => return Err(unexpected(row.column(i).name(), other)),
        })
    };
    (0..row.len()).map(value).collect::<Result<_, _>>().map(Row)
}

fn unexpected(column: &str, what: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("column `{column}` holds a value of type {what}").into())
}

impl Row {
    /// The value of a column.
    pub fn get<T: FromValue>(&self, column: usize) -> Result<T, sqlx::Error> {
        let value =
            self.0.get(column).ok_or(sqlx::Error::ColumnIndexOutOfBounds { index: column, len: self.0.len() })?;
        T::from_value(value).ok_or_else(|| sqlx::Error::Decode(format!("column {column} holds {value:?}").into()))
    }
}

pub trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

impl FromValue for i64 {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Integer(value) = value { *value } else { None }
    }
}

impl FromValue for u64 {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).and_then(|value| value.try_into().ok())
    }
}

impl FromValue for i32 {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).and_then(|value| value.try_into().ok())
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).map(|value| value != 0)
    }
}

impl FromValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Double(value) = value { *value } else { None }
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(value) = value { value.clone() } else { None }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bytes(value) = value { value.clone() } else { None }
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(None) | Value::Double(None) | Value::Text(None) | Value::Bytes(None) => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Value::Integer(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Integer(Some(value))
    }
}

/// Numbers of documents, bytes and n-grams.
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Integer(Some(value as i64))
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Value::Integer(Some(value as i64))
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Value::Integer(Some(value.into()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Integer(Some(value.into()))
    }
}

impl From<Option<f64>> for Value {
    fn from(value: Option<f64>) -> Self {
        Value::Double(value)
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Value::Text(value)
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Value::Text(value.map(str::to_owned))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(Some(value))
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Value::Bytes(Some(value.to_owned()))
    }
}

/// Parameters of a statement, in order.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::catalog::sql::database::Value::from($value)),*] };
}
pub(super) use values;
