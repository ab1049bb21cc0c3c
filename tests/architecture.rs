//! The shape of the crate: imports go one way, and the core touches nothing outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

/// In the order in which a document passes them; each may use only itself and what stands before it.
const MODULES: [&str; 20] = [
    "record",
    "features",
    "score",
    "feedback",
    "select",
    "checkpoint",
    "window",
    "manifest",
    "publish",
    "crash",
    "tokenizer",
    "config",
    "store",
    "source",
    "sink",
    "catalog",
    "sql",
    "telemetry",
    "pipeline",
    "cli",
];
/// The first modules are pure.
const N_PURE: usize = 9;
/// These edges never know each other.
const STRANGERS: [&str; 3] = ["source", "sink", "catalog"];
const IMPURE: [&str; 13] = [
    "std::fs",
    "std::env",
    "std::net",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant",
    "::now(",
    "async fn",
    "tokio",
    "tracing::",
    "println!",
    "rand::",
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// (module, path, source without comments and inline tests) of every file below `src`.
fn sources() -> Vec<(usize, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let module_of = |path: &Path| {
        let first =
            path.strip_prefix(&src).unwrap().components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        MODULES.iter().position(|m| *m == first.trim_end_matches(".rs"))
    };
    let mut sources = Vec::new();
    for path in files(&src) {
        let Some(module) = module_of(&path) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        let code: String = text.lines().filter(|l| !l.trim_start().starts_with("//")).flat_map(|l| [l, "\n"]).collect();
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
        let is_test = path.ends_with("tests.rs") || path.ends_with("conformance.rs");
        sources.push((module, path, if is_test { String::new() } else { code }));
    }
    assert!(sources.len() > 40, "only {} files were found", sources.len());
    sources
}

#[test]
fn imports_go_one_way() {
    for (module, path, code) in sources() {
        for (other, name) in MODULES.iter().enumerate() {
            let uses = code.contains(&format!("crate::{name}"));
            assert!(!uses || other <= module, "{} uses `{name}`, which comes after it", path.display());
            let strangers = other != module && STRANGERS.contains(name) && STRANGERS.contains(&MODULES[module]);
            assert!(!uses || !strangers, "{} knows `{name}`", path.display());
        }
    }
}

#[test]
fn the_core_is_pure() {
    for (module, path, code) in sources() {
        for word in IMPURE {
            assert!(
                module >= N_PURE || !code.contains(word),
                "{} is in the pure core and uses `{word}`",
                path.display()
            );
        }
    }
}

#[test]
fn the_map_names_every_module_in_order() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<_> =
        lib.lines().filter_map(|l| l.strip_prefix("pub mod ")).map(|l| l.trim_end_matches(';').to_owned()).collect();
    assert_eq!(declared, MODULES);
    for name in MODULES {
        assert!(
            lib.contains(&format!("//! | [`{name}`]")) || lib.contains(&format!("//! | `{name}`")),
            "the map lacks `{name}`"
        );
    }
}
