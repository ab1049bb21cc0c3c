use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::record::Document;
use crate::sink::GiveUp;
use crate::sink::patience::Patience;

fn folder(is_compressed: bool) -> (tempfile::TempDir, Arc<SpoolFolder>) {
    folder_of_files(is_compressed, LARGE_BYTES)
}

/// `large_bytes`: what makes a file large.
fn folder_of_files(is_compressed: bool, large_bytes: u64) -> (tempfile::TempDir, Arc<SpoolFolder>) {
    let place = tempfile::tempdir().unwrap();
    let of = SpoolFolder::new(Some(place.path().to_owned()), is_compressed, Arc::new(GiveUp));
    let of = SpoolFolder { large_bytes, ..Arc::into_inner(of).unwrap() };
    (place, Arc::new(of))
}

fn rows(spool: &Spool, numbers: &[u32]) -> Result<Vec<SpooledRow>, SinkError> {
    let mut rows = Vec::new();
    let take = |row| {
        rows.push(row);
        Ok::<_, SinkError>(())
    };
    spool.rows(numbers, take).map(|()| rows)
}

fn write(spool: &mut Spool) -> Result<(), SinkError> {
    Spool::write([spool].into_iter())
}

fn row() -> impl Strategy<Value = SpooledRow> {
    let text = prop_oneof![4 => "\\PC{0,40}".boxed(), 1 => (0usize..200_000).prop_map(|n| "é".repeat(n)).boxed()];
    let parts = (text, ".{0,9}", proptest::option::of(".{0,9}"), proptest::option::of("[{}\":a]{0,30}"));
    let number = || proptest::option::of(proptest::num::f64::NORMAL);
    let numbers =
        (any::<(u32, Option<u32>)>(), proptest::num::f64::NORMAL, number(), proptest::num::f64::NORMAL, number());
    let others = proptest::collection::vec(proptest::num::f64::NORMAL, 0..4);
    let point = proptest::collection::vec(proptest::num::f32::NORMAL, 0..9);
    let all = (parts, numbers, proptest::option::of(any::<i64>()), others, point);
    all.prop_map(|((text, id, source, metadata), numbers, timestamp_ms, other_weights, point)| {
        let ((n_tokens, counted_tokens), log_importance_weight, loss, expected_loss_weight, expected_loss) = numbers;
        let score =
            Score { n_tokens, counted_tokens, log_importance_weight, loss, expected_loss_weight, expected_loss };
        SpooledRow { document: Document { id, text, source, timestamp_ms, metadata }, score, other_weights, point }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever rows come, whichever are wanted, and however often: those come back as they were, in order.
    #[test]
    fn chosen_rows_come_back(
        wanted in proptest::collection::vec((row(), any::<bool>()), 0..30),
        written in 0usize..31,
        is_compressed: bool,
        large_bytes in prop_oneof![Just(LARGE_BYTES), Just(0)],
    ) {
        let (_place, folder) = folder_of_files(is_compressed, large_bytes);
        let mut spool = folder.open();
        // Some chunks are on disk, others are not yet.
        let (before, after) = wanted.split_at(written.min(wanted.len()));
        before.iter().for_each(|(row, _)| spool.push(row));
        write(&mut spool).unwrap();
        after.iter().for_each(|(row, _)| spool.push(row));
        let numbers: Vec<u32> = (0..wanted.len() as u32).filter(|&i| wanted[i as usize].1).collect();
        let expected: Vec<&SpooledRow> = wanted.iter().filter(|(_, is)| *is).map(|(row, _)| row).collect();
        for _ in 0..2 {
            let found = rows(&spool, &numbers).unwrap();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected.clone());
            let mut points = Vec::new();
            spool.points::<SinkError>(&numbers, |score, point| points.push((*score, point.to_vec()))).unwrap();
            let of_rows: Vec<_> = expected.iter().map(|row| (row.score, row.point.clone())).collect();
            prop_assert_eq!(points, of_rows);
        }
        prop_assert_eq!((folder.used_bytes(), spool.n_rows()), (spool.bytes(), wanted.len() as u32));
        prop_assert_eq!(folder.n_files(), u64::from(spool.bytes() > 0));
        let beyond = rows(&spool, &[wanted.len() as u32]).unwrap_err().to_string();
        prop_assert!(beyond.contains(&format!("row {0} of {0} cannot be read", wanted.len())), "{}", beyond);
        prop_assert_eq!(folder.take_errors(), 1);
        drop(spool);
        // Large ones are deleted by a thread of the pool: when this comes to its turn, or was before it on another one.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while large_bytes == 0 && folder.n_files() > 0 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        prop_assert_eq!((folder.used_bytes(), folder.n_files(), folder.take_errors()), (0, 0, 0));
    }
}

fn plain(text: String) -> SpooledRow {
    let document = Document { id: "d".into(), text, source: None, timestamp_ms: None, metadata: None };
    SpooledRow { document, score: Score::default(), other_weights: vec![], point: vec![] }
}

#[test]
fn a_file_has_no_name_and_there_is_none_until_it_is_needed() {
    let (place, folder) = folder(true);
    let mut spool = folder.open();
    let (small, large) = (plain("x".into()), plain("x".repeat(CHUNK_BYTES)));
    spool.push(&small);
    write(&mut spool).unwrap();
    spool.push(&large);
    assert_eq!((folder.n_files(), folder.used_bytes(), spool.full_bytes()), (0, 0, spool.full[0].rows.len()));
    let mut other = folder.open();
    other.push(&large);
    Spool::write([&mut spool, &mut folder.open(), &mut other].into_iter()).unwrap();
    assert_eq!(spool.full_bytes() + other.full_bytes(), 0);
    assert_eq!((folder.n_files(), folder.used_bytes()), (2, spool.bytes() + other.bytes()));
    assert!(spool.held_bytes() <= 2 * CHUNK_BYTES + 4 * size_of::<Chunk>(), "{}", spool.held_bytes());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "the file of an open spool can be seen");
    spool.push(&small);
    assert_eq!(rows(&spool, &[0, 1, 2]).unwrap(), [small.clone(), large, small]);
}

/// What is read ahead comes in order; who has enough gets no more, and neither does who comes to a damaged chunk.
#[test]
fn more_rows_than_are_read_together_come_until_one_ends_it() {
    let (place, folder) = folder(false);
    let mut spool = folder.open();
    let n = 4 * READ_BYTES / CHUNK_BYTES;
    (0..n).for_each(|i| spool.push(&plain(format!("{i} ").repeat(CHUNK_BYTES / 2))));
    write(&mut spool).unwrap();
    let numbers: Vec<u32> = (0..n as u32).collect();
    let mut came = 0;
    let mut take_until = |end: usize| {
        came = 0;
        let taken = spool.rows(&numbers, |row| {
            assert!(row.document.text.starts_with(&format!("{came} ")), "row {came}");
            came += 1;
            if came == end { Err(Box::<dyn std::error::Error>::from("enough")) } else { Ok(()) }
        });
        (came, taken.map_err(|e| e.to_string()))
    };
    assert_eq!(take_until(n + 1), (n, Ok(())));
    for end in [1, n / 2, n] {
        let (came, taken) = take_until(end);
        assert!(came == end && taken.unwrap_err().contains("enough"), "{came} for {end}");
    }
    let last = spool.chunks.last().unwrap();
    spool.file.as_ref().unwrap().file.write_all_at(b"?", last.start + u64::from(last.compressed_bytes) / 2).unwrap();
    let (came, taken) = take_until(n + 1);
    let error = taken.unwrap_err();
    assert!(came == n - 1 && error.contains(&place.path().display().to_string()), "{came}: {error}");
}

/// Rows of the largest documents: there is memory for one of them, whoever takes long over it.
#[test]
fn beside_a_large_row_no_others_are_held() {
    let (_place, folder) = folder(true);
    let mut spool = folder.open();
    let sizes =
        [READ_BYTES, 10, CHUNK_BYTES, CHUNK_BYTES, READ_BYTES + 1, READ_BYTES / 2, READ_BYTES / 2, READ_BYTES, 1];
    sizes.iter().for_each(|bytes| spool.push(&plain("x".repeat(*bytes))));
    write(&mut spool).unwrap();
    let (n_held, n_large, n_given) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let read = |mut encoded: Encoded<'_>| {
        let row = encoded.row()?;
        let is_large = row.document.text.len() >= READ_BYTES;
        n_large.fetch_add(u64::from(is_large), Ordering::SeqCst);
        let others = n_held.fetch_add(1, Ordering::SeqCst);
        assert!(others == 0 || n_large.load(Ordering::SeqCst) == 0, "{others} rows are held beside a large one");
        Ok(row)
    };
    let give = |row: SpooledRow| {
        let number = n_given.fetch_add(1, Ordering::SeqCst) as usize;
        assert_eq!(row.document.text.len(), sizes[number]);
        n_held.fetch_sub(1, Ordering::SeqCst);
        n_large.fetch_sub(u64::from(sizes[number] >= READ_BYTES), Ordering::SeqCst);
        Ok::<_, SinkError>(())
    };
    let numbers: Vec<u32> = (0..sizes.len() as u32).collect();
    spool.visit(&numbers, Again::No, read, give).unwrap();
    assert_eq!(n_given.into_inner(), sizes.len() as u64);
}

/// A large file is deleted after whoever had it goes on: until then what it takes is told apart, since it comes back by itself.
#[test]
fn what_is_being_deleted_is_counted_until_it_is_gone() {
    let (_place, folder) = folder_of_files(false, 0);
    let mut spool = folder.open();
    spool.push(&plain("x".repeat(CHUNK_BYTES)));
    write(&mut spool).unwrap();
    let bytes = spool.bytes();
    assert_eq!((folder.used_bytes(), folder.deleting_bytes()), (bytes, 0));
    // Its only thread cannot delete before this is over.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let of = folder.clone();
    let meanwhile = pool.install(move || {
        drop(spool);
        (of.used_bytes(), of.deleting_bytes())
    });
    assert_eq!(meanwhile, (bytes, bytes));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while folder.deleting_bytes() > 0 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!((folder.deleting_bytes(), folder.used_bytes(), folder.n_files()), (0, 0, 0));
}

#[test]
fn what_is_not_compressed_takes_its_size() {
    let size = |is_compressed| {
        let (_place, folder) = folder(is_compressed);
        let mut spool = folder.open();
        (0..4).for_each(|_| spool.push(&plain("the same again, ".repeat(CHUNK_BYTES / 16))));
        write(&mut spool).unwrap();
        spool.bytes() as f64 / (4 * CHUNK_BYTES) as f64
    };
    let (compressed, not) = (size(true), size(false));
    assert!(compressed < 0.1 && (1.0..1.01).contains(&not), "{compressed} {not}");
}

#[test]
fn damage_is_an_error_that_names_the_folder() {
    for is_compressed in [true, false] {
        damage_is_an_error(is_compressed);
    }
}

fn damage_is_an_error(is_compressed: bool) {
    let (place, folder) = folder(is_compressed);
    let mut spool = folder.open();
    spool.push(&plain((0..CHUNK_BYTES).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect()));
    write(&mut spool).unwrap();
    let (mut byte, file) = ([0], &spool.file.as_ref().unwrap().file);
    file.read_exact_at(&mut byte, spool.bytes() / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], spool.bytes() / 2).unwrap();
    let error = rows(&spool, &[0]).unwrap_err().to_string();
    assert!(error.contains(&place.path().display().to_string()), "{error}");
    let mut missing = SpoolFolder::new(Some("/no/such/folder".into()), is_compressed, Arc::new(GiveUp)).open();
    missing.push(&plain("x".repeat(CHUNK_BYTES)));
    let error = write(&mut missing).unwrap_err().to_string();
    assert!(error.contains("/no/such/folder") && missing.of.take_errors() == 1, "{error}");
}

#[test]
fn a_full_disk_is_waited_for_and_then_told() {
    struct Waits(AtomicU64);
    impl FullDisk for Waits {
        fn wait(&self, _: &std::path::Path, _: &io::Error) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) < 2
        }
        fn is_over(&self) {}
    }
    // A device that is always full, as the kernel has it.
    let full_disk = Arc::new(Waits(AtomicU64::new(0)));
    let (patience, _abandon) = Patience::new("/dev".into(), full_disk.clone());
    let file = File::options().write(true).open("/dev/full").unwrap();
    let error = SpoolFile { _abandon, patience, file }.write(b"row", 0).unwrap_err();
    assert_eq!((error.kind(), full_disk.0.load(Ordering::Relaxed)), (io::ErrorKind::StorageFull, 3));
}
