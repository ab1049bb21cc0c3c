use std::io::Read;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use sha2::{Digest, Sha256};

use super::*;
use crate::checkpoint::Interval;
use crate::record::{Document, TopicPartition};
use crate::score::{NgramCounts, Score};
use crate::select::SourceCounts;
use crate::sink::GiveUp;
use crate::window::{CloseReason, WindowSummary};

fn window(texts: impl IntoIterator<Item = String>) -> ClosedWindow {
    let selected: Vec<_> = texts
        .into_iter()
        .enumerate()
        .map(|(i, text)| SelectedDocument {
            offset: i as i64,
            document: Document {
                id: format!("d{i}"),
                text,
                source: (i % 2 == 0).then(|| "web".to_owned()),
                timestamp_ms: Some(1_700_000_000_000 + i as i64),
                metadata: None,
            },
            score: Score { n_tokens: 3, log_importance_weight: -0.5, ..Score::default() },
            target: 0,
            log_importance_weights: vec![],
            selection_key: 1.25,
            inclusion_probability: 0.25,
            loss_weight: None,
            tenth: 9,
        })
        .collect();
    let n = selected.len() as u64;
    let summary = WindowSummary {
        at: TopicPartition::new("docs", 2),
        interval: Interval { from: 0, to: n as i64 },
        closed_by: CloseReason::Documents,
        n_records: n,
        n_selected: n,
        n_rejected: 0,
        n_too_short: 0,
        n_filtered: None,
        n_dead_letters: 0,
        payload_bytes: 0,
        threshold: None,
        kl_reduction: None,
        random_kl_reduction: None,
        raw_version: None,
        against_selected: None,
        expected_loss: None,
        quota_version: None,
        diagnostics: None,
        turns: vec![],
        targets: vec![],
    };
    let (counts, sources) = (NgramCounts::zero(2), SourceCounts::default());
    let (raw_counts, selected_counts) = (counts.clone(), vec![counts]);
    ClosedWindow { summary, selected, dead_letters: vec![], raw_counts, selected_counts, sources, weights: vec![] }
}

fn write(window: &ClosedWindow, settings: WriterSettings) -> FinishedFile {
    write_for(&[], window, settings)
}

fn write_for(targets: &[String], window: &ClosedWindow, settings: WriterSettings) -> FinishedFile {
    let mut writer = ShardWriter::create("s", None, settings, targets, &[], Arc::new(GiveUp)).unwrap();
    writer.append(window, &ModelId::of(b"m")).unwrap();
    assert!(writer.bytes() > 0 && writer.rows() == window.selected.len() as u64);
    writer.finish(vec![("winnowd.pipeline".into(), "p".into())]).unwrap()
}

const SETTINGS: WriterSettings = WriterSettings { row_group_rows: 1024, row_group_bytes: 1 << 20, zstd_level: 1 };

#[test]
fn rows_come_back_with_the_documented_schema() {
    let finished = write(&window((0..3000).map(|i| format!("text {i}"))), SETTINGS);
    assert_eq!(finished.rows, 3000);
    let mut bytes = Vec::new();
    finished.file.rewound().unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, finished.bytes);
    assert_eq!(finished.digest, format!("sha256:{}", crate::hex(&Sha256::digest(&bytes))));

    let reader = ParquetRecordBatchReaderBuilder::try_new(finished.file.rewound().unwrap()).unwrap();
    assert_eq!(reader.schema().fields(), schema(&[], &[]).fields());
    let footer = reader.metadata().file_metadata().key_value_metadata().unwrap();
    assert!(footer.iter().any(|kv| kv.key == "winnowd.pipeline" && kv.value.as_deref() == Some("p")));
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3000);
    let first = batches[0].slice(0, 1);
    let json = format!("{first:?}");
    for expected in ["text 0", "d0", "web", "docs/2/0-3000", "sha256:"] {
        assert!(json.contains(expected), "{json}");
    }
}

/// After the columns of one target: the one that chose, and the weight for each, as in selections of files.
#[test]
fn several_targets_have_columns_of_their_own() {
    let targets = ["code".to_owned(), "a b".to_owned()];
    let mut window = window((0..600).map(|i| format!("text {i}")));
    for (i, row) in window.selected.iter_mut().enumerate() {
        row.target = i % 2;
        row.log_importance_weights = vec![i as f64, -(i as f64)];
        row.score.log_importance_weight = row.log_importance_weights[row.target];
        row.score.expected_loss = (i % 3 == 0).then_some(i as f64);
    }
    let finished = write_for(&targets, &window, SETTINGS);
    let file = finished.file.rewound().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
    let names: Vec<_> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
    let (of_all, of_targets) = names.split_at(COLUMNS.len());
    assert_eq!(of_all, schema(&[], &[]).fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>());
    assert_eq!(of_targets, ["target", "log_importance_weight_code", "log_importance_weight_a b"]);
    let rows =
        crate::sink::ShardReader::open("s", finished.file.rewound().unwrap()).unwrap().rows(597, 2, &[]).unwrap();
    let of =
        |row: &crate::sink::PublishedRow| (row.offset, row.target.clone().unwrap(), row.log_importance_weights.clone());
    let weights = |n: f64| vec![("code".to_owned(), n), ("a b".to_owned(), -n)];
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        [(597, "a b".to_owned(), weights(597.0)), (598, "code".to_owned(), weights(598.0))]
    );
    assert_eq!(rows[0].log_importance_weight, -597.0);
    let losses = |expected| vec![("loss", None), ("loss_weight", None), ("expected_loss", expected)];
    assert_eq!([&rows[0].losses, &rows[1].losses], [&losses(Some(597.0)), &losses(None)]);
}

#[test]
fn row_groups_keep_both_limits_and_have_page_indexes() {
    // Every third text is large, so that bytes end some groups and rows others.
    let texts = (0..5000).map(|i| if i < 200 { "x".repeat(20_000) } else { format!("small {i}") });
    let finished = write(&window(texts), SETTINGS);
    let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
    reader.try_parse(&finished.file.rewound().unwrap()).unwrap();
    let metadata = reader.finish().unwrap();
    let groups: Vec<_> = metadata.row_groups().iter().map(|g| (g.num_rows(), g.total_byte_size())).collect();
    assert!(groups.iter().all(|&(rows, bytes)| rows <= 1024 && bytes <= (1 << 20) + (64 << 10)), "{groups:?}");
    assert!(groups.iter().any(|&(rows, _)| rows == 1024) && groups.iter().any(|&(rows, _)| rows < 60), "{groups:?}");
    assert!(metadata.offset_index().is_some() && metadata.column_index().is_some());
}

#[test]
fn a_document_larger_than_a_row_group_stands_alone() {
    let finished = write(&window([String::from("a"), "y".repeat(3 << 20), String::from("b")]), SETTINGS);
    let reader = ParquetRecordBatchReaderBuilder::try_new(finished.file.rewound().unwrap()).unwrap();
    let rows: Vec<_> = reader.metadata().row_groups().iter().map(|g| g.num_rows()).collect();
    assert_eq!(rows, [1, 1, 1]);
}

#[test]
fn a_crash_leaves_no_scratch_file() {
    let folder = tempfile::tempdir().unwrap();
    let writer = ShardWriter::create("s", Some(folder.path()), SETTINGS, &[], &[], Arc::new(GiveUp)).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a file with a name would outlive a kill -9");
    drop(writer);
    let missing = ShardWriter::create("s", Some(&folder.path().join("none")), SETTINGS, &[], &[], Arc::new(GiveUp));
    assert!(missing.err().unwrap().to_string().contains("scratch file in"));
}

/// Wherever batches, row groups and windows end, each row keeps its own values.
#[test]
fn derived_columns_stand_last_and_beside_their_rows() {
    let derived = [
        Field::new("number", DataType::Int64, true),
        Field::new("parts", DataType::new_list(DataType::Utf8, true), true),
    ];
    // Every seventh text is large, so that batches and groups end at rows of their own.
    let texts = |n: usize| (0..n).map(|i| if i % 7 == 0 { "x".repeat(90_000) } else { format!("small {i}") });
    let windows = [window(texts(300)), window(texts(1)), window(texts(777))];
    let mut writer = ShardWriter::create("s", None, SETTINGS, &[], &derived, Arc::new(GiveUp)).unwrap();
    for window in &windows {
        let derive = &mut |rows: &[SelectedDocument]| -> Vec<ArrayRef> {
            let numbers: arrow::array::Int64Array =
                rows.iter().map(|row| (row.offset % 5 != 0).then_some(row.offset)).collect();
            let mut parts = arrow::array::ListBuilder::new(StringBuilder::new());
            for row in rows {
                parts.append_value((0..row.offset % 3).map(|i| Some(format!("{i} of {}", row.offset))));
            }
            vec![Arc::new(numbers), Arc::new(parts.finish())]
        };
        writer.append_with(window, &ModelId::of(b"m"), derive).unwrap();
    }
    let finished = writer.finish(Vec::new()).unwrap();
    let file = finished.file.rewound().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
    assert_eq!(reader.schema().fields(), schema(&[], &derived).fields());
    let read = crate::sink::ShardReader::open("s", file).unwrap();
    let rows = read.rows(0, 1078, &["number", "parts", "none"]).unwrap();
    let offsets = windows.iter().flat_map(|window| window.selected.iter().map(|row| row.offset));
    for (row, offset) in rows.iter().zip(offsets) {
        assert_eq!(row.offset, offset);
        let [(number, of_number), (parts, of_parts)] = &row.derived[..] else { panic!("{:?}", row.derived) };
        assert_eq!((number.as_str(), parts.as_str()), ("number", "parts"));
        let value = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(of_number);
        assert_eq!(value.iter().next().unwrap(), (offset % 5 != 0).then_some(offset));
        let list = arrow::array::AsArray::as_list::<i32>(of_parts).value(0);
        assert_eq!(list.len() as i64, offset % 3);
    }
    assert_eq!(rows.len(), 1078);
    assert!(is_shard_column("Text") && is_shard_column("log_importance_weight_x") && !is_shard_column("n_chars"));
}
