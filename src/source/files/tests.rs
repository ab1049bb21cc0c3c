use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, BinaryBuilder, Int32Builder, Int64Array, LargeStringArray, MapBuilder, StringArray,
    StringBuilder, StringViewArray, StructArray,
};
use arrow::datatypes::Field;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::*;
use crate::record::{Base64Floats, EmbeddingField};

fn read(name: &str, content: &[u8]) -> Result<Vec<String>, FileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    File::create(&path).unwrap().write_all(content).unwrap();
    let mut texts = Vec::new();
    let decoder = Decoder::for_files();
    for_each_document(&path, &decoder, |document, _| texts.push(document.text.to_string())).map(|()| texts)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[test]
fn reads_plain_and_compressed_lines() {
    let lines = b"{\"text\":\"a\"}\n\n{\"text\":\"b\"}\r\n{\"text\":\"c\"}";
    assert_eq!(read("x.jsonl", lines).unwrap(), ["a", "b", "c"]);
    assert_eq!(read("x.jsonl.zst", &zstd::encode_all(&lines[..], 1).unwrap()).unwrap(), ["a", "b", "c"]);
    // Two members, as `cat a.gz b.gz` makes them.
    let members = [gzip(&lines[..20]), gzip(&lines[20..])].concat();
    assert_eq!(read("x.jsonl.gz", &members).unwrap(), ["a", "b", "c"]);
    assert!(read("x.jsonl", b"").unwrap().is_empty());
}

#[test]
fn a_bad_line_is_named() {
    let error = read("x.jsonl", b"{\"text\":\"a\"}\n{\"text\":1}\n").unwrap_err().to_string();
    assert!(error.contains("x.jsonl`, line 2: invalid_field: field `text` is a number"), "{error}");
    assert!(read("x.zst", b"not zstd").is_err());
    assert!(read("x.gz", b"not gzip").is_err());
    let cut = gzip(b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n");
    assert!(read("x.gz", &cut[..cut.len() - 9]).is_err(), "half a file was taken for a whole one");
    assert!(read("x.parquet", b"not Parquet").is_err());
}

/// (line, text) of everything that is read on `threads` threads.
fn scan(paths: &[PathBuf], threads: usize, skip_bad_lines: bool) -> Result<Vec<(u64, Option<String>)>, FileError> {
    let inputs = expand(paths, &StoreOptions::new())?;
    let settings = ReadSettings { skip_bad_lines, ..ReadSettings::new(Decoder::for_files()) };
    let reader = Reader { inputs: &inputs, settings: &settings, stop: &AtomicBool::new(false) };
    let mut all = Vec::new();
    let work = |(): &mut (), chunk: &ChunkReader<'_>| {
        let mut seen = Vec::new();
        chunk.for_each_document(|record| seen.push(record.map_or((0, None), |r| (r.line, Some(r.text.to_owned())))))?;
        let mut n_places = 0;
        chunk.for_each_place(|_| n_places += 1);
        assert_eq!(seen.len(), n_places);
        Ok(seen)
    };
    reader.scan(Wanted::Named, vec![(); threads], work, |seen| {
        all.extend(seen);
        Ok::<(), FileError>(())
    })?;
    Ok(all)
}

/// Texts by their lines, as both passes see them; the second one by places, where there are any.
fn both_passes(path: &Path, max_line_bytes: usize, skip_bad_lines: bool) -> Result<Vec<(u64, String)>, FileError> {
    let inputs = expand(&[path.to_owned()], &StoreOptions::new())?;
    let settings = ReadSettings { skip_bad_lines, max_line_bytes, ..ReadSettings::new(Decoder::for_files()) };
    let reader = Reader { inputs: &inputs, settings: &settings, stop: &AtomicBool::new(false) };
    let work = |(): &mut (), chunk: &ChunkReader<'_>| {
        let mut seen = Vec::new();
        chunk.for_each_document(|record| seen.push(record.map(|r| (r.line, r.text.to_owned()))))?;
        Ok((chunk.chunk.place, seen))
    };
    let (mut places, mut first) = (Vec::new(), Vec::new());
    reader.scan(Wanted::Named, vec![(); 2], work, |(place, seen)| {
        places.extend(place);
        first.extend(seen);
        Ok::<(), FileError>(())
    })?;
    let documents = |seen: &[Option<(u64, String)>]| seen.iter().flatten().cloned().collect::<Vec<_>>();
    if !places.is_empty() {
        let mut second = Vec::new();
        reader.scan_again(&places, vec![(); 2], work, |(_, seen)| {
            second.extend(seen);
            Ok::<(), FileError>(())
        })?;
        assert_eq!(documents(&second), documents(&first));
    }
    // A bad line is one of the records, so that those after it keep their numbers.
    let n_bad = first.iter().filter(|record| record.is_none()).count();
    let mut found = documents(&first);
    found.extend((0..n_bad).map(|_| (0, String::new())));
    Ok(found)
}

#[test]
fn what_marks_a_file_as_unicode_is_no_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let lines = b"\xEF\xBB\xBF{\"text\":\"a\"}\n{\"text\":\"\xEF\xBB\xBFb\"}\n";
    let expected = [(1, "a".to_owned()), (2, "\u{FEFF}b".to_owned())];
    let written = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    for path in [written("x.jsonl", lines), written("x.jsonl.gz", &gzip(lines))] {
        assert_eq!(both_passes(&path, 1 << 20, false).unwrap(), expected);
    }
    assert!(both_passes(&written("only.jsonl", &lines[..3]), 1 << 20, false).unwrap().is_empty());
    let error = both_passes(&written("y.jsonl", &[b"\n", &lines[..]].concat()), 1 << 20, false).unwrap_err();
    assert_eq!(error.line, Some(2), "it is no mark but at the beginning");
}

#[test]
fn lines_that_are_too_long_are_bad_lines() {
    const MAX: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let line = |bytes: usize, break_line: bool| {
        format!("{{\"text\":\"{}\"}}{}", "x".repeat(bytes - 11), if break_line { "\n" } else { "" })
    };
    let text = |bytes: usize| "x".repeat(bytes - 11);
    let path = folder.path().join("x.jsonl");
    for lengths in [
        &[MAX][..],
        &[20, MAX, 20],
        &[MAX + 1],
        &[MAX + 1, 20, 20],
        &[20, MAX + 1],
        &[20, 2 * MAX, 30, 5_000_000, MAX, MAX + 1, MAX + 2, 40],
        &[3 * MAX + 3, 4 * MAX + 4, 5 * MAX + 5],
    ] {
        for ends_with_break in [true, false] {
            let lines = lengths.iter().enumerate();
            let lines = lines.map(|(i, bytes)| line(*bytes, ends_with_break || i + 1 < lengths.len()));
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            let first_long = lengths.iter().position(|bytes| *bytes > MAX);
            match (both_passes(&path, MAX, false), first_long) {
                (Err(error), Some(first_long)) => {
                    assert_eq!(error.line, Some(first_long as u64 + 1), "{lengths:?}");
                    assert!(error.problem.starts_with("too_large: longer than 100 bytes"), "{error}");
                }
                (found, expected) => assert!(found.is_ok() && expected.is_none(), "{lengths:?}"),
            }
            let numbered = (1..).zip(lengths.iter());
            let (good, bad): (Vec<_>, Vec<_>) = numbered.partition(|(_, bytes)| **bytes <= MAX);
            let mut expected: Vec<_> = good.into_iter().map(|(line, bytes)| (line, text(*bytes))).collect();
            expected.extend(bad.iter().map(|_| (0, String::new())));
            assert_eq!(both_passes(&path, MAX, true).unwrap(), expected, "{lengths:?}");
        }
    }
}

#[test]
fn records_of_csv_that_are_too_long_are_bad_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.csv");
    // Line breaks within quotes end no record, however far they go.
    let long = "x\n\"\"".repeat(1_000);
    for heading in ["text", "text,id"] {
        let rest = if heading == "text" { "" } else { ",7" };
        std::fs::write(&path, format!("{heading}\na{rest}\n\"{long}\"{rest}\nb{rest}\n\"{long}\"{rest}")).unwrap();
        let (a, b, bad) = ((1, "a".to_owned()), (3, "b".to_owned()), (0, String::new()));
        assert_eq!(both_passes(&path, 50, true).unwrap(), [a, b, bad.clone(), bad]);
        let error = both_passes(&path, 50, false).unwrap_err();
        assert!(error.line == Some(2) && error.problem.contains("too_large"), "{error}");
    }
    std::fs::write(&path, format!("\"{long}\"\na\n")).unwrap();
    let error = both_passes(&path, 50, true).unwrap_err().to_string();
    assert!(error.contains("heading: too_large: longer than 50 bytes"), "{error}");
}

/// Lines across many chunks, one of them longer than a chunk.
#[test]
fn chunks_lose_and_repeat_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let mut file = File::create(&path).unwrap();
    let mut expected = Vec::new();
    for n in 0..4_000u64 {
        let text = format!("{n} {}", "x".repeat(if n == 1_000 { 3 << 20 } else { (n * 37 % 2_000) as usize }));
        writeln!(file, "{{\"text\":\"{text}\"}}{}", if n % 7 == 0 { "\n" } else { "" }).unwrap();
        expected.push((n + 1 + n.div_ceil(7), Some(text)));
    }
    for threads in [1, 2, 5] {
        assert!(scan(std::slice::from_ref(&path), threads, false).unwrap() == expected, "with {threads} threads");
    }
}

#[test]
fn the_first_bad_line_is_the_error_whatever_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    let mut file = File::create(&path).unwrap();
    for n in 1..=20_000 {
        let bad = n == 9_000 || n == 19_000;
        writeln!(file, "{{\"text\":{}}}", if bad { "1".to_owned() } else { format!("\"{}\"", "y".repeat(300)) })
            .unwrap();
    }
    for threads in [1, 3] {
        let error = scan(std::slice::from_ref(&path), threads, false).unwrap_err();
        assert_eq!(error.line, Some(9_000));
        let seen = scan(std::slice::from_ref(&path), threads, true).unwrap();
        assert_eq!((seen.len(), seen.iter().filter(|(_, text)| text.is_none()).count()), (20_000, 2));
    }
}

fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, row_group_rows: usize) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// What a second pass says of a file if something happens to it after the first: where it is read from the beginning,
/// and where its chunks are looked for by their places.
fn after_change(path: &Path, change: impl FnOnce()) -> [Option<String>; 2] {
    let inputs = expand(&[path.to_owned()], &StoreOptions::new()).unwrap();
    let settings = ReadSettings::new(Decoder::for_files());
    let reader = Reader { inputs: &inputs, settings: &settings, stop: &AtomicBool::new(false) };
    let work = |(): &mut (), chunk: &ChunkReader<'_>| {
        chunk.for_each_document(|_| {})?;
        Ok(chunk.chunk.place)
    };
    let mut places = Vec::new();
    let first = reader.scan(Wanted::Named, vec![(); 2], work, |place| {
        places.extend(place);
        Ok::<(), FileError>(())
    });
    first.unwrap();
    change();
    let again = reader.scan(Wanted::All, vec![(); 2], work, |_| Ok::<(), FileError>(()));
    let by_places = reader.scan_again(&places, vec![(); 2], work, |_| Ok::<(), FileError>(()));
    // Without places nothing is read by them.
    let by_places = if places.is_empty() { None } else { by_places.err() };
    [again.err(), by_places].map(|error| error.map(|e| e.to_string()))
}

/// A selection is drawn by the numbers of documents: in another file they would be those of others.
#[test]
fn a_file_that_changes_between_passes_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let write = |path: &Path, name: &str, texts: [&str; 2]| {
        let lines = texts.map(|text| format!("{{\"text\":\"{text}\"}}\n")).concat();
        match name {
            "x.parquet" => parquet(path, vec![("text", Arc::new(StringArray::from(texts.to_vec())) as ArrayRef)], 1),
            "x.csv" => std::fs::write(path, format!("text\n{}\n{}\n", texts[0], texts[1])).unwrap(),
            "x.jsonl.gz" => std::fs::write(path, gzip(lines.as_bytes())).unwrap(),
            _ => std::fs::write(path, lines).unwrap(),
        }
    };
    for name in ["x.jsonl", "x.jsonl.gz", "x.csv", "x.parquet"] {
        let path = folder.path().join(name);
        write(&path, name, ["a", "b"]);
        assert_eq!(after_change(&path, || {}), [None, None], "{name}");
        let swapped = after_change(&path, || {
            write(&other, name, ["b", "a"]);
            std::fs::rename(&other, &path).unwrap();
        });
        let touched = after_change(&path, || {
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        });
        let appended = after_change(&path, || {
            let more = std::fs::read(&path).unwrap();
            File::options().append(true).open(&path).unwrap().write_all(&more).unwrap();
        });
        for [again, by_places] in [swapped, touched, appended] {
            let says = |said: &String| said.contains(&format!("{name}`")) && said.ends_with(CHANGED);
            assert!(again.as_ref().is_some_and(says), "{name}: {again:?}");
            assert_eq!(by_places.is_some(), name == "x.jsonl", "{name}");
            assert!(by_places.as_ref().is_none_or(says), "{name}: {by_places:?}");
        }
    }
}

/// What it reads of a file that grows depends on when it looks.
#[test]
fn a_file_that_changes_under_a_pass_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, format!("{{\"text\":\"{}\"}}\n", "x".repeat(1_000)).repeat(5_000)).unwrap();
    let mut is_first = true;
    let error = for_each_document(&path, &Decoder::for_files(), |_, _| {
        if std::mem::take(&mut is_first) {
            File::options().append(true).open(&path).unwrap().write_all(b"{\"text\":").unwrap();
        }
    });
    let said = error.unwrap_err().to_string();
    assert!(said.contains("x.jsonl`") && said.ends_with(CHANGED), "{said}");
}

/// It has no identity to be kept, and must be opened once only.
#[test]
fn a_pipe_is_read_as_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let feeding = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, "{\"text\":\"a\"}\n{\"text\":\"b\"}\n").unwrap()
    });
    let mut texts = Vec::new();
    for_each_document(&pipe, &Decoder::for_files(), |document, _| texts.push(document.text.to_string())).unwrap();
    feeding.join().unwrap();
    assert_eq!(texts, ["a", "b"]);
}

#[test]
fn reads_parquet_of_any_string_type_in_small_and_large_row_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let texts: Vec<String> = (0..3_000).map(|n| format!("{n} {}", "ü".repeat(n % 7_000))).collect();
    let columns: [ArrayRef; 3] = [
        Arc::new(StringArray::from_iter_values(&texts)),
        Arc::new(LargeStringArray::from_iter_values(&texts)),
        Arc::new(StringViewArray::from_iter_values(&texts)),
    ];
    let expected: Vec<_> = texts.iter().enumerate().map(|(i, t)| (i as u64 + 1, Some(t.clone()))).collect();
    for column in columns {
        for row_group_rows in [100, 10_000] {
            parquet(&path, vec![("text", column.clone())], row_group_rows);
            for threads in [1, 3] {
                assert!(scan(std::slice::from_ref(&path), threads, false).unwrap() == expected);
            }
        }
    }
}

#[test]
fn rows_become_objects_with_all_their_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let (text, id): (ArrayRef, ArrayRef) =
        (Arc::new(StringArray::from(vec!["a\n\"b\"", "c"])), Arc::new(Int64Array::from(vec![Some(7), None])));
    parquet(&path, vec![("text", text), ("id", id.clone()), ("n", id)], 10);
    let mut documents = Vec::new();
    for_each_document(&path, &Decoder::for_files(), |document, _| documents.push(document.to_document())).unwrap();
    assert_eq!((documents[0].text.as_str(), documents[0].id.as_str()), ("a\n\"b\"", "7"));
    assert_eq!(documents[0].metadata.as_deref(), Some("{\"n\":7}"));
    assert_eq!(documents[1].id, format!("{}/0/2", path.display()));
    assert_eq!(documents[1].metadata, None);
}

/// Two rows of one entry.
fn map<K: ArrayBuilder>(keys: K, mut add: impl FnMut(&mut K, usize)) -> ArrayRef {
    let mut maps = MapBuilder::new(None, keys, StringBuilder::new());
    for row in 0..2 {
        add(maps.keys(), row);
        maps.values().append_value("v");
        maps.append(true).unwrap();
    }
    Arc::new(maps.finish())
}

#[test]
fn keys_of_maps_become_strings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let by_number = map(Int32Builder::new(), |keys, row| keys.append_value([7, -1][row]));
    let within = Arc::new(Field::new("m", by_number.data_type().clone(), true));
    let nested: ArrayRef = Arc::new(StructArray::from(vec![(within, by_number.clone())]));
    let by_string = map(StringBuilder::new(), |keys, row| keys.append_value(["x", "y"][row]));
    parquet(&path, vec![("text", text), ("m", by_number), ("nested", nested), ("s", by_string)], 10);
    let mut metadata = Vec::new();
    for_each_document(&path, &Decoder::for_files(), |document, _| metadata.extend(document.metadata())).unwrap();
    assert_eq!(
        metadata,
        [
            r#"{"m":{"7":"v"},"nested":{"m":{"7":"v"}},"s":{"x":"v"}}"#,
            r#"{"m":{"-1":"v"},"nested":{"m":{"-1":"v"}},"s":{"y":"v"}}"#
        ]
    );
    assert_eq!(scan(&[path], 1, false).unwrap().len(), 2);
}

/// At once, and not when whole rows are read, after everything was scored.
#[test]
fn columns_that_cannot_become_objects_are_named_when_a_file_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let refused = |columns: Vec<(&str, ArrayRef)>| {
        parquet(&path, columns, 10);
        scan(std::slice::from_ref(&path), 1, false).unwrap_err().problem
    };
    let by_bytes = map(BinaryBuilder::new(), |keys, row| keys.append_value([row as u8, 0xFF]));
    let within = Arc::new(Field::new("m", by_bytes.data_type().clone(), true));
    let nested: ArrayRef = Arc::new(StructArray::from(vec![(within, by_bytes.clone())]));
    for column in [by_bytes, nested] {
        let problem = refused(vec![("text", text.clone()), ("odd", column)]);
        assert!(problem.contains("column `odd` is ") && problem.contains("make them strings"), "{problem}");
    }
    for name in ["text", "id"] {
        let problem = refused(vec![("text", text.clone()), ("id", text.clone()), (name, text.clone())]);
        assert!(problem.contains(&format!("two columns are called `{name}`")), "{problem}");
    }
}

#[test]
fn folders_stand_for_their_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.jsonl", "a.jsonl.gz", "c.txt", "d.parquet"] {
        File::create(folder.path().join(name)).unwrap();
    }
    let inputs = expand(&[folder.path().to_owned(), folder.path().join("c.txt")], &StoreOptions::new()).unwrap();
    let names: Vec<_> = inputs.iter().map(|i| i.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a.jsonl.gz", "b.jsonl", "d.parquet", "c.txt"]);
    let empty = tempfile::tempdir().unwrap();
    assert!(
        expand(&[empty.path().to_owned()], &StoreOptions::new())
            .unwrap_err()
            .to_string()
            .contains("a folder without files")
    );
}

/// Numbers and vector of a document.
type Extra = (Vec<f64>, Vec<f32>);

/// What scans give of these fields.
fn extra(path: &Path, numbers: &[&str], vector: &str) -> Result<Vec<Extra>, FileError> {
    extra_beside(path, Decoder::for_files(), numbers, vector)
}

/// The same where a decoder has its own use for some of them.
fn extra_beside(path: &Path, decoder: Decoder, numbers: &[&str], vector: &str) -> Result<Vec<Extra>, FileError> {
    let inputs = expand(&[path.to_owned()], &StoreOptions::new())?;
    let numbers = numbers.iter().map(|name| (*name).to_owned()).collect();
    let vector = EmbeddingField { field: vector.to_owned(), base64: Base64Floats::F16 };
    let extra = ExtraFields { numbers, vector: Some(vector), word: None };
    let settings = ReadSettings { extra, ..ReadSettings::new(decoder) };
    let reader = Reader { inputs: &inputs, settings: &settings, stop: &AtomicBool::new(false) };
    let mut all = Vec::new();
    let work = |(): &mut (), chunk: &ChunkReader<'_>| {
        let mut seen = Vec::new();
        chunk.for_each_document(|record| seen.extend(record.map(|r| (r.numbers.to_vec(), r.vector.to_vec()))))?;
        Ok(seen)
    };
    reader.scan(Wanted::Named, vec![()], work, |seen| {
        all.extend(seen);
        Ok::<(), FileError>(())
    })?;
    Ok(all)
}

#[test]
fn numbers_and_vectors_come_with_the_documents() {
    let folder = tempfile::tempdir().unwrap();
    let jsonl = folder.path().join("x.jsonl");
    let lines = [
        r#"{"text":"a","loss":1.5,"n":7,"e":[1,2.5,-3e1]}"#,
        r#"{"e":[],"text":"b","loss":"1.5","n":null}"#,
        r#"{"text":"c","loss":[1.5],"e":[1,"2"]}"#,
        r#"{"text":"d","l\u006fss":2,"loss":-1e300,"n":18446744073709551615,"e":7}"#,
    ];
    std::fs::write(&jsonl, lines.join("\n")).unwrap();
    let found = extra(&jsonl, &["n", "loss"], "e").unwrap();
    let (numbers, vectors): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    assert_eq!(vectors, [vec![1.0, 2.5, -30.0], vec![], vec![], vec![]]);
    assert_eq!(numbers[0], [7.0, 1.5]);
    assert!(numbers[1..3].iter().flatten().all(|number| number.is_nan()), "{numbers:?}");
    assert_eq!(numbers[3], [18_446_744_073_709_551_615.0, -1e300]);

    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
    let n: ArrayRef = Arc::new(Int64Array::from(vec![Some(3), None, Some(-2)]));
    let items = Arc::new(Field::new("item", arrow::datatypes::DataType::Float64, true));
    let flat = arrow::array::Float64Array::from(vec![Some(1.0), Some(2.0), Some(3.0), None, Some(5.0), Some(6.0)]);
    let lists = arrow::array::FixedSizeListArray::new(items, 2, Arc::new(flat), Some(vec![true, true, false].into()));
    let columns = [("text", text), ("n", n), ("e", Arc::new(lists) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let parquet = folder.path().join("x.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&parquet).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let found = extra(&parquet, &["n", "none"], "e").unwrap();
    assert_eq!(found.iter().map(|(_, vector)| vector.clone()).collect::<Vec<_>>(), [vec![1.0, 2.0], vec![], vec![]]);
    assert_eq!((found[0].0[0], found[2].0[0]), (3.0, -2.0));
    assert!(found[1].0[0].is_nan() && found.iter().all(|(numbers, _)| numbers[1].is_nan()));
    let error = extra(&parquet, &["text"], "e").unwrap_err().to_string();
    assert!(error.contains("column `text` is Utf8, expected numbers"), "{error}");
    let error = extra(&parquet, &[], "n").unwrap_err().to_string();
    assert!(error.contains("column `n` is Int64, expected lists of numbers"), "{error}");
}

/// The same word from objects, rows and CSV.
#[test]
fn a_word_comes_with_the_documents() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let words = |path: &Path, field: &str| {
        let inputs = expand(&[path.to_owned()], &StoreOptions::new())?;
        let extra = ExtraFields { word: Some(field.to_owned()), ..ExtraFields::default() };
        let settings = ReadSettings { extra, ..ReadSettings::new(Decoder::for_files()) };
        let reader = Reader { inputs: &inputs, settings: &settings, stop: &AtomicBool::new(false) };
        let mut all = Vec::new();
        let work = |(): &mut (), chunk: &ChunkReader<'_>| {
            let mut seen = Vec::new();
            chunk.for_each_document(|record| seen.extend(record.map(|r| r.word.map(str::to_owned))))?;
            Ok(seen)
        };
        reader.scan(Wanted::Named, vec![()], work, |seen| {
            all.extend(seen);
            Ok::<(), FileError>(())
        })?;
        Ok::<_, FileError>(all)
    };
    let some = |word: &str| Some(word.to_owned());
    let jsonl = [
        r#"{"text":"a","w":"d\u0065","n":1.5}"#,
        r#"{"text":"b","w":7}"#,
        r#"{"text":"c","w":true}"#,
        r#"{"text":"d","w":null}"#,
        r#"{"text":"e","w":["de"]}"#,
        r#"{"text":"f"}"#,
    ];
    let jsonl = write("x.jsonl", &jsonl.join("\n"));
    assert_eq!(words(&jsonl, "w").unwrap(), [some("de"), some("7"), some("true"), None, None, None]);
    let csv = write("x.csv", "w,text\nde,a\n7,b\n,c\n");
    assert_eq!(words(&csv, "w").unwrap(), [some("de"), some("7"), None]);

    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let word: ArrayRef = Arc::new(StringArray::from(vec![Some("de"), None]));
    let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None]));
    let float: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![1.5, 2.0]));
    let truth: ArrayRef = Arc::new(arrow::array::BooleanArray::from(vec![true, false]));
    let bytes: ArrayRef = Arc::new(arrow::array::BinaryArray::from(vec![&b"a"[..], b"b"]));
    let columns =
        [("text", text), ("word", word), ("number", number), ("float", float), ("truth", truth), ("bytes", bytes)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let path = folder.path().join("x.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    for (field, expected) in [
        ("word", [some("de"), None]),
        ("number", [some("7"), None]),
        ("float", [some("1.5"), some("2.0")]),
        ("truth", [some("true"), some("false")]),
        ("none", [None, None]),
    ] {
        assert_eq!(words(&path, field).unwrap(), expected, "{field}");
    }
    let error = words(&path, "bytes").unwrap_err().to_string();
    assert!(error.contains("column `bytes` is Binary, expected strings, numbers or booleans"), "{error}");
}

#[test]
fn embeddings_are_read_as_the_daemon_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let given = ["\"ADwAwQ==\"", "\"ADwAwQ\"", "[1,-2.5]", "[1e20]", "\"?\"", "\"\"", "[]"];
    let expected = [vec![1.0, -2.5], vec![1.0, -2.5], vec![1.0, -2.5], vec![], vec![], vec![], vec![]];
    let vectors = |path: &Path| -> Vec<Vec<f32>> {
        extra(path, &[], "e").unwrap().into_iter().map(|(_, vector)| vector).collect()
    };
    let jsonl = folder.path().join("x.jsonl");
    let lines: String = given.iter().map(|json| format!("{{\"text\":\"a\",\"e\":{json}}}\n")).collect();
    std::fs::write(&jsonl, lines).unwrap();
    assert_eq!(vectors(&jsonl), expected);
    let plain = given.map(|json| json.trim_matches('"'));
    let csv = folder.path().join("x.csv");
    let lines: String = plain.iter().map(|text| format!("a,\"{text}\"\n")).collect();
    std::fs::write(&csv, format!("text,e\n{lines}")).unwrap();
    assert_eq!(vectors(&csv), expected);
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(plain));
    let path = folder.path().join("texts.parquet");
    parquet(&path, vec![("text", texts.clone()), ("e", texts)], 10);
    assert_eq!(vectors(&path), expected);
    let numbers = [Some(vec![Some(1.0), Some(-2.5)]), Some(vec![Some(1e20)]), Some(vec![]), None];
    let lists = arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Float64Type, _, _>(numbers);
    let path = folder.path().join("lists.parquet");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a"; 4]));
    parquet(&path, vec![("text", text), ("e", Arc::new(lists) as ArrayRef)], 10);
    assert_eq!(vectors(&path), [vec![1.0, -2.5], vec![], vec![], vec![]]);
}

#[test]
fn a_loss_can_be_a_number_beside() {
    let folder = tempfile::tempdir().unwrap();
    let jsonl = folder.path().join("x.jsonl");
    let lines = [r#"{"text":"a","loss":1.5,"ref":1,"n":7}"#, r#"{"text":"b","ref":3e-1}"#, r#"{"text":"c","loss":-2}"#];
    std::fs::write(&jsonl, lines.join("\n")).unwrap();
    let given = [[Some(1.5), Some(1.0)], [None, Some(0.3)], [Some(-2.0), None]];
    let column = |i: usize| -> ArrayRef { Arc::new(arrow::array::Float64Array::from_iter(given.map(|row| row[i]))) };
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
    let batch = RecordBatch::try_from_iter([("text", text), ("loss", column(0)), ("ref", column(1))]).unwrap();
    let parquet = folder.path().join("x.parquet");
    let mut writer = ArrowWriter::try_new(File::create(&parquet).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let mut decoder = Decoder::for_files();
    (decoder.fields.loss, decoder.fields.reference_loss) = (Some("loss".into()), Some("ref".into()));
    for path in [jsonl, parquet] {
        let found = extra_beside(&path, decoder.clone(), &["ref", "loss"], "none").unwrap();
        let found: Vec<_> =
            found.iter().map(|(numbers, _)| [1, 0].map(|i| Some(numbers[i]).filter(|n| !n.is_nan()))).collect();
        assert_eq!(found, given, "{}", path.display());
    }
}
