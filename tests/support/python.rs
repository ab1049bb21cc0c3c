//! Python, for what trainers are written in.

use std::path::PathBuf;
use std::process::Command;

/// One that can import these modules, comma-separated; `None`, and a word about it, where there is none.
pub fn python(modules: &str) -> Option<PathBuf> {
    python_of("venv", modules)
}

/// The same of another environment.
pub fn python_of(environment: &str, modules: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("WINNOWD_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/winnowd")));
    let python = cache?.join(environment).join("bin/python");
    let found = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if !found.is_ok_and(|found| found.status.success()) {
        eprintln!("skipped: {} cannot import {modules}", python.display());
        return None;
    }
    Some(python)
}
