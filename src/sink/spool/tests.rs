use proptest::prelude::*;

use super::*;
use crate::sink::GiveUp;

fn folder(max_bytes: u64) -> (tempfile::TempDir, Arc<SpoolFolder>) {
    let place = tempfile::tempdir().unwrap();
    let of = SpoolFolder::new(Some(place.path().to_owned()), max_bytes, Arc::new(GiveUp));
    (place, Arc::new(of))
}

fn row() -> impl Strategy<Value = SpooledRow> {
    let text = prop_oneof![4 => "\\PC{0,40}".boxed(), 1 => (0usize..400_000).prop_map(|n| "é".repeat(n)).boxed()];
    let parts = (text, ".{0,9}", proptest::option::of(".{0,9}"), proptest::option::of("[{}\":a]{0,30}"));
    let loss = proptest::option::of(proptest::num::f64::NORMAL);
    let numbers = (any::<u32>(), proptest::num::f64::NORMAL, loss, proptest::num::f64::NORMAL);
    let others = proptest::collection::vec(proptest::num::f64::NORMAL, 0..4);
    let all = (parts, numbers, proptest::option::of(any::<i64>()), others);
    all.prop_map(|((text, id, source, metadata), numbers, timestamp_ms, other_weights)| {
        let (n_tokens, log_importance_weight, loss, expected_loss_weight) = numbers;
        let score = Score { n_tokens, log_importance_weight, loss, expected_loss_weight };
        SpooledRow { document: Document { id, text, source, timestamp_ms, metadata }, score, other_weights }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever rows come, whichever are wanted: those come back as they were, in order.
    #[test]
    fn chosen_rows_come_back(rows in proptest::collection::vec((row(), any::<bool>()), 0..30)) {
        let (_place, folder) = folder(u64::MAX);
        let mut spool = folder.open().unwrap();
        rows.iter().for_each(|(row, _)| spool.push(row).unwrap());
        let wanted: Vec<u32> = (0..rows.len() as u32).filter(|&i| rows[i as usize].1).collect();
        let expected: Vec<&SpooledRow> = rows.iter().filter(|(_, wanted)| *wanted).map(|(row, _)| row).collect();
        let found = spool.rows(&wanted).unwrap();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        prop_assert_eq!(folder.used_bytes(), spool.bytes());
        let beyond = spool.rows(&[rows.len() as u32]).unwrap_err().to_string();
        prop_assert!(beyond.contains("is wanted of"), "{}", beyond);
        drop(spool);
        prop_assert_eq!(folder.used_bytes(), 0);
    }
}

fn plain(text: String) -> SpooledRow {
    let document = Document { id: "d".into(), text, source: None, timestamp_ms: None, metadata: None };
    SpooledRow { document, score: Score::default(), other_weights: vec![] }
}

#[test]
fn a_file_has_no_name_and_what_a_crash_left_is_removed() {
    let (place, folder) = folder(100);
    let names = || std::fs::read_dir(place.path()).unwrap().count();
    let mut spool = folder.open().unwrap();
    spool.push(&plain("x".repeat(CHUNK_BYTES))).unwrap();
    assert_eq!(names(), 0, "the file of an open spool can be seen");
    for name in ["winnowd-spool-abc", "winnowd-spool-d", "shard-of-another"] {
        std::fs::write(place.path().join(name), "left").unwrap();
    }
    assert_eq!(folder.remove_leftovers().unwrap(), 2);
    assert!(names() == 1 && place.path().join("shard-of-another").exists());
    assert_eq!(spool.rows(&[0]).unwrap(), [plain("x".repeat(CHUNK_BYTES))]);
}

#[test]
fn the_budget_is_that_of_all_windows_together() {
    let (_place, folder) = folder(40);
    let (mut one, mut other) = (folder.open().unwrap(), folder.open().unwrap());
    one.push(&plain("x".repeat(CHUNK_BYTES))).unwrap();
    let of_one = folder.used_bytes();
    other.push(&plain("x".repeat(CHUNK_BYTES))).unwrap();
    assert!(of_one > 0 && folder.used_bytes() == 2 * of_one && folder.is_full());
    drop(other);
    assert_eq!(folder.used_bytes(), of_one);
    drop(one);
    assert!(!folder.is_full());
}

#[test]
fn damage_is_an_error_that_names_the_folder() {
    let (place, folder) = folder(u64::MAX);
    let mut spool = folder.open().unwrap();
    spool.push(&plain((0..CHUNK_BYTES).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect())).unwrap();
    let mut byte = [0];
    spool.file.read_exact_at(&mut byte, spool.bytes() / 2).unwrap();
    spool.file.write_all_at(&[byte[0] ^ 1], spool.bytes() / 2).unwrap();
    let error = spool.rows(&[0]).unwrap_err().to_string();
    assert!(error.contains(&place.path().display().to_string()), "{error}");
    let missing = SpoolFolder::new(Some("/no/such/folder".into()), 1, Arc::new(GiveUp));
    assert!(Arc::new(missing).open().err().unwrap().to_string().contains("/no/such/folder"));
}
