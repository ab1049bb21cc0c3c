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
use crate::window::{CloseReason, ClosedWindow, WindowSummary};

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
            sample_weight: 4.0,
            loss_weight: None,
            tenth: 9,
            held_out: false,
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
        spread: None,
        coverage: None,
        sensitivity: None,
    };
    let (counts, sources) = (NgramCounts::zero(2), SourceCounts::default());
    let (raw_counts, selected_counts) = (counts.clone(), vec![counts]);
    ClosedWindow {
        summary,
        selected,
        waiting: vec![],
        dead_letters: vec![],
        raw_counts,
        selected_counts,
        sources,
        weights: vec![],
        clusters: None,
        edges: None,
    }
}

fn append(writer: &mut ShardWriter, window: &ClosedWindow, derived: &[ArrayRef]) {
    append_side(writer, window, None, derived);
}

/// `None`: both.
fn append_side(writer: &mut ShardWriter, window: &ClosedWindow, split: Option<Split>, derived: &[ArrayRef]) {
    let is_there = |row: &&SelectedDocument| split.is_none_or(|split| row.held_out == (split == Split::Validation));
    let rows: Vec<_> = window.selected.iter().filter(is_there).collect();
    writer.append(&rows, &window.summary.at, &window.summary.id(), &ModelId::of(b"m"), derived).unwrap();
}

fn write(window: &ClosedWindow, settings: WriterSettings) -> FinishedFile {
    write_for(&[], window, settings)
}

fn write_for(targets: &[String], window: &ClosedWindow, settings: WriterSettings) -> FinishedFile {
    let mut writer = ShardWriter::create("s", None, settings, targets, &[], Arc::new(GiveUp)).unwrap();
    append(&mut writer, window, &[]);
    assert!(writer.bytes() > 0 && writer.rows() == window.selected.len() as u64);
    writer.finish(vec![("winnowd.pipeline".into(), "p".into())]).unwrap()
}

const SETTINGS: WriterSettings =
    WriterSettings { row_group_rows: 1024, row_group_bytes: 1 << 20, zstd_level: 1, shuffle: None };

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
    let shard = crate::sink::ShardReader::open("s", finished.file.rewound().unwrap()).unwrap();
    let rows = &shard.windows(&[window.summary.id()], &[]).unwrap()[&window.summary.id()][597..599];
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

/// Rows and bytes before compression of every row group, by what the file says of itself.
fn row_groups(finished: &FinishedFile) -> Vec<(i64, i64)> {
    let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
    reader.try_parse(&finished.file.rewound().unwrap()).unwrap();
    let metadata = reader.finish().unwrap();
    assert!(metadata.offset_index().is_some() && metadata.column_index().is_some());
    metadata.row_groups().iter().map(|g| (g.num_rows(), g.total_byte_size())).collect()
}

/// To a tenth: rows exactly, and bytes from nine to eleven tenths, whatever the sizes of documents are.
#[test]
fn row_groups_keep_both_limits_and_have_page_indexes() {
    let limit = SETTINGS.row_group_bytes as i64;
    for shuffle in [None, Some(7)] {
        let settings = WriterSettings { shuffle, ..SETTINGS };
        for (least, most) in [(0, 40), (900, 1100), (1_000, 20_000), (0, 60_000)] {
            let n = if most > 2000 { 600 } else { 6000 };
            let sizes = (0..n).map(|i| least + (i * 7_919) % (most - least));
            let texts = sizes.map(|size: usize| "x".repeat(size));
            let groups = row_groups(&write(&window(texts), settings));
            let (last, others) = groups.split_last().unwrap();
            assert!(last.0 <= 1024 && last.1 <= limit * 11 / 10, "{groups:?}");
            for &(rows, bytes) in others {
                let by_rows = rows == 1024 && bytes <= limit * 11 / 10;
                let by_bytes = rows < 1024 && bytes <= limit * 11 / 10 && bytes + most as i64 >= limit * 9 / 10;
                assert!(by_rows || by_bytes, "{rows} rows, {bytes} bytes, of texts from {least} to {most}");
            }
            assert!(others.iter().all(|(rows, _)| (*rows == 1024) == (most <= 40)) || most == 1100, "{groups:?}");
        }
    }
}

/// Of small documents the numbers and the dictionaries are most.
#[test]
fn bytes_of_a_row_group_are_those_of_the_file() {
    let rows = 1000;
    let finished = write(&window((0..rows).map(|i| "x".repeat(i % 30))), SETTINGS);
    let [(_, bytes)] = row_groups(&finished)[..] else { panic!("one row group") };
    let (window, id) = (window((0..rows).map(|i| "x".repeat(i % 30))), "docs/2/0-1000".to_owned());
    let mut group = RowGroup::default();
    window.selected.iter().for_each(|selected| group.add(&Row::of(selected, &window.summary.at, &id, &[])));
    let error = (group.bytes as f64 - bytes as f64).abs() / bytes as f64;
    assert!(error < 0.1, "{} are taken for {bytes}", group.bytes);
}

/// Of a partition, from an offset.
fn window_of(partition: i32, from: i64, n: usize) -> ClosedWindow {
    // Nothing in it repeats, so that it compresses by its letters alone.
    let words =
        |i: usize| (0..i % 60).map(|word| Sha256::digest(format!("{partition} {i} {word}"))).collect::<Vec<_>>();
    let mut window = window((0..n).map(|i| words(i).iter().map(|word| crate::hex(word)).collect::<String>()));
    window.summary.at = TopicPartition::new("docs", partition);
    window.summary.interval = Interval { from, to: from + n as i64 };
    for row in &mut window.selected {
        row.offset += from;
        row.document.id = format!("d{partition}-{}", row.offset);
    }
    window
}

fn ids(finished: &FinishedFile) -> Vec<String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(finished.file.rewound().unwrap()).unwrap();
    let batches = reader.build().unwrap().map(Result::unwrap);
    let of = |batch: RecordBatch| {
        let ids: arrow::array::StringArray =
            batch.column_by_name("id").unwrap().as_any().downcast_ref().cloned().unwrap();
        ids.iter().map(|id| id.unwrap().to_owned()).collect::<Vec<_>>()
    };
    batches.flat_map(of).collect()
}

/// The order is a function of seed and positions: neither of the order of windows nor of how they are cut.
#[test]
fn shuffled_rows_stand_in_the_order_of_their_keys_however_they_came() {
    let write = |windows: &[ClosedWindow], seed| {
        let settings = WriterSettings { shuffle: Some(seed), ..SETTINGS };
        let mut writer = ShardWriter::create("s", None, settings, &[], &[], Arc::new(GiveUp)).unwrap();
        windows.iter().for_each(|window| append(&mut writer, window, &[]));
        assert!(writer.held_bytes() < 1 << 20);
        let estimate = writer.bytes() as f64;
        let finished = writer.finish(vec![]).unwrap();
        assert!((estimate / finished.bytes as f64 - 1.0).abs() < 0.5, "{estimate} for {}", finished.bytes);
        finished
    };
    let forwards = write(&[window_of(0, 0, 2000), window_of(1, 500, 700), window_of(0, 2000, 900)], 3);
    let cut = [window_of(1, 500, 700), window_of(0, 2000, 900), window_of(0, 0, 2000)];
    let otherwise = write(&cut, 3);
    assert_eq!(ids(&forwards), ids(&otherwise));
    let key = |id: &String| {
        let (partition, offset) = id[1..].split_once('-').unwrap();
        let at = TopicPartition::new("docs", partition.parse().unwrap());
        Noise::new(3, &at).shuffle(offset.parse().unwrap())
    };
    let found = ids(&forwards);
    assert!(found.len() == 3600 && found.is_sorted_by_key(key));
    let reader =
        |finished: &FinishedFile| crate::sink::ShardReader::open("s", finished.file.rewound().unwrap()).unwrap();
    assert_eq!(reader(&forwards).first_out_of_order(3).unwrap(), None);
    assert!(reader(&forwards).first_out_of_order(4).unwrap().is_some());
    assert_ne!(ids(&write(&cut, 4)), found);
    // Whatever the order, a window's rows are found.
    let unshuffled = {
        let mut writer = ShardWriter::create("s", None, SETTINGS, &[], &[], Arc::new(GiveUp)).unwrap();
        cut.iter().for_each(|window| append(&mut writer, window, &[]));
        writer.finish(vec![]).unwrap()
    };
    let wanted = [cut[0].summary.id(), cut[2].summary.id()];
    let rows = reader(&forwards).windows(&wanted, &[]).unwrap();
    assert_eq!(rows, reader(&unshuffled).windows(&wanted, &[]).unwrap());
    assert_eq!(rows.values().map(Vec::len).collect::<Vec<_>>(), [2000, 700]);
}

/// Each side in a file of its own, which a reader knows by its footer.
#[test]
fn a_row_is_on_one_side_only() {
    let mut window = window((0..100).map(|i| format!("text {i}")));
    window.selected.iter_mut().for_each(|row| row.held_out = row.offset % 5 == 4);
    let rows = |split: Split| {
        let mut writer = ShardWriter::create("s", None, SETTINGS, &[], &[], Arc::new(GiveUp)).unwrap();
        append_side(&mut writer, &window, Some(split), &[]);
        let finished = writer.finish(vec![(crate::sink::SPLIT.into(), split.as_str().into())]).unwrap();
        let shard = crate::sink::ShardReader::open("s", finished.file.rewound().unwrap()).unwrap();
        let rows = shard.windows(&[window.summary.id()], &[]).unwrap().remove(&window.summary.id()).unwrap();
        assert_eq!(rows.len() as u64, finished.rows);
        rows
    };
    let (train, validation) = (rows(Split::Train), rows(Split::Validation));
    assert!(train.len() == 80 && train.iter().all(|row| row.offset % 5 != 4 && !row.held_out));
    assert!(validation.len() == 20 && validation.iter().all(|row| row.offset % 5 == 4 && row.held_out));
}

/// What trainers have written down: names and types stay, in this order, and what is added may be null, so that shards of all
/// versions can be read together.
#[test]
fn columns_are_only_ever_added() {
    let text = |(name, data_type, nullable): &(&str, DataType, bool)| {
        format!("{name}: {data_type}{}", if *nullable { "?" } else { "" })
    };
    let now: Vec<String> = COLUMNS.iter().map(text).collect();
    let first_version = "text: Utf8, id: Utf8, source: Utf8?, topic: Utf8, partition: Int32, offset: Int64, timestamp: Timestamp(ms)?, \
         n_tokens: UInt32, log_importance_weight: Float64, selection_key: Float64, inclusion_probability: Float64, \
         sample_weight: Float64, window: Utf8, model: Utf8, metadata: Utf8?";
    assert_eq!(now[..15].join(", "), first_version);
    assert_eq!(now[15..18], ["loss: Float64?", "loss_weight: Float64?", "expected_loss: Float64?"]);
    assert!(COLUMNS[15..].iter().all(|(_, _, nullable)| *nullable));
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

/// Wherever batches, row groups and windows end, and in whatever order rows stand, each keeps its own values.
#[test]
fn derived_columns_stand_last_and_beside_their_rows() {
    for shuffle in [None, Some(5)] {
        check_derived(WriterSettings { shuffle, ..SETTINGS });
    }
}

fn check_derived(settings: WriterSettings) {
    let derived = [
        Field::new("number", DataType::Int64, true),
        Field::new("parts", DataType::new_list(DataType::Utf8, true), true),
    ];
    // Every seventh text is large, so that batches and groups end at rows of their own.
    let texts = |n: usize| (0..n).map(|i| if i % 7 == 0 { "x".repeat(90_000) } else { format!("small {i}") });
    let windows = [window(texts(300)), window(texts(1)), window(texts(777))];
    let mut writer = ShardWriter::create("s", None, settings, &[], &derived, Arc::new(GiveUp)).unwrap();
    for window in &windows {
        let rows = &window.selected;
        let numbers: arrow::array::Int64Array =
            rows.iter().map(|row| (row.offset % 5 != 0).then_some(row.offset)).collect();
        let mut parts = arrow::array::ListBuilder::new(StringBuilder::new());
        for row in rows {
            parts.append_value((0..row.offset % 3).map(|i| Some(format!("{i} of {}", row.offset))));
        }
        append(&mut writer, window, &[Arc::new(numbers), Arc::new(parts.finish())]);
    }
    let finished = writer.finish(Vec::new()).unwrap();
    let file = finished.file.rewound().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
    assert_eq!(reader.schema().fields(), schema(&[], &derived).fields());
    let read = crate::sink::ShardReader::open("s", file).unwrap();
    let ids: Vec<String> = windows.iter().map(|window| window.summary.id()).collect();
    let by_window = read.windows(&ids, &["number", "parts", "none"]).unwrap();
    let rows: Vec<_> = ids.iter().flat_map(|id| &by_window[id]).collect();
    assert_eq!(rows.len(), 1078);
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
