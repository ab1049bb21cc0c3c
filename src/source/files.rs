//! Documents from files: JSONL, plain or zstd-compressed, one line at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::record::{Decoder, DocumentRef, Reject, TextScratch, TopicPartition};

#[derive(Debug, thiserror::Error)]
#[error("`{}`{}: {problem}", path.display(), line.map(|n| format!(", line {n}")).unwrap_or_default())]
pub struct FileError {
    pub path: PathBuf,
    pub line: Option<u64>,
    pub problem: String,
}

/// Calls `each` with every document of a file and the bytes of its line, in order. A bad line ends it with an error: a model fitted on half a
/// file would be wrong without a sign of it.
pub fn for_each_document(
    path: &Path,
    decoder: &Decoder,
    mut each: impl FnMut(&DocumentRef<'_>, u64),
) -> Result<u64, FileError> {
    let error = |line, problem: String| FileError { path: path.to_owned(), line, problem };
    let file = File::open(path).map_err(|e| error(None, e.to_string()))?;
    let name = path.to_string_lossy();
    let reader: Box<dyn Read> = if name.ends_with(".zst") {
        Box::new(zstd::Decoder::new(file).map_err(|e| error(None, e.to_string()))?)
    } else if name.ends_with(".gz") || name.ends_with(".parquet") {
        return Err(error(None, "only JSONL, plain or with zstd (.zst), can be read".to_owned()));
    } else {
        Box::new(file)
    };
    let at = TopicPartition::new(&*name, 0);
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let mut line = Vec::new();
    let mut scratch = TextScratch::default();
    let mut n_lines = 0;
    loop {
        line.clear();
        let bytes = (&mut reader).take(decoder.max_bytes as u64 + 2).read_until(b'\n', &mut line);
        let bytes = bytes.map_err(|e| error(Some(n_lines + 1), e.to_string()))?;
        if bytes == 0 {
            return Ok(n_lines);
        }
        n_lines += 1;
        let payload = line.trim_ascii_end();
        if payload.is_empty() {
            continue;
        }
        match decoder.decode_ref(Some(payload), &at, n_lines as i64, None, &mut scratch) {
            Ok(document) => each(&document, bytes as u64),
            Err(Reject { reason, detail }) => {
                return Err(error(Some(n_lines), format!("{}: {detail}", reason.as_str())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(name: &str, content: &[u8]) -> Result<Vec<String>, FileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        File::create(&path).unwrap().write_all(content).unwrap();
        let mut texts = Vec::new();
        let decoder = Decoder::for_files();
        for_each_document(&path, &decoder, |document, _| texts.push(document.text.to_string())).map(|_| texts)
    }

    #[test]
    fn reads_plain_and_compressed_lines() {
        let lines = b"{\"text\":\"a\"}\n\n{\"text\":\"b\"}\r\n{\"text\":\"c\"}";
        assert_eq!(read("x.jsonl", lines).unwrap(), ["a", "b", "c"]);
        assert_eq!(read("x.jsonl.zst", &zstd::encode_all(&lines[..], 1).unwrap()).unwrap(), ["a", "b", "c"]);
        assert!(read("x.jsonl", b"").unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read("x.jsonl", b"{\"text\":\"a\"}\n{\"text\":1}\n").unwrap_err().to_string();
        assert!(error.contains("x.jsonl`, line 2: invalid_field: field `text` is a number"), "{error}");
        let error = read("x.gz", b"").unwrap_err().to_string();
        assert!(error.contains("only JSONL"), "{error}");
        assert!(read("x.zst", b"not zstd").is_err());
    }
}
