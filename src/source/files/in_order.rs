//! Work on several threads whose results come out in the order in which it was handed out.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many pieces of work may be under way or finished and waiting for an earlier one: so many for each thread, and some more, so
/// that the others do not wait while one delivers for long, as the writer of a large page does.
fn ahead(threads: usize) -> u64 {
    3 * threads as u64 + 8
}

/// Takes pieces with `next` until it gives `None`, `work`s on them on one thread for each of `states`, and `deliver`s the
/// results in order, each on the thread that happens to hold it. Ends at the first error of `deliver`.
///
/// The calling thread is one of them: it has a core of its own already, while of two new threads both may be put on the other one, and
/// stay there for some hundredths of a second.
pub fn in_order<S: Send, P, T: Send, E: Send>(
    mut states: Vec<S>,
    mut next: impl FnMut(&mut S) -> Option<P> + Send,
    work: impl Fn(&mut S, P) -> T + Sync,
    mut deliver: impl FnMut(T) -> Result<(), E> + Send,
) -> Result<Vec<S>, E> {
    if let [state] = &mut states[..] {
        while let Some(piece) = next(state) {
            deliver(work(state, piece))?;
        }
        return Ok(states);
    }
    let ahead = ahead(states.len());
    let shared = Shared {
        source: Mutex::new((0, next)),
        queue: Mutex::new(Queue { next: 0, done: BTreeMap::new(), is_delivering: false, stopped: None, failed: false }),
        moved: Condvar::new(),
        deliver: Mutex::new(deliver),
    };
    let run = &|state: &mut S| {
        let _guard = StopOnPanic(&shared);
        while let Some((n, piece)) = shared.take(state, ahead) {
            let result = work(state, piece);
            shared.finished(n, result);
        }
    };
    std::thread::scope(|scope| {
        let mut states = states.iter_mut();
        let own = states.next();
        states.for_each(|state| drop(scope.spawn(move || run(state))));
        own.into_iter().for_each(run);
    });
    match lock(&shared.queue).stopped.take() {
        Some(error) => Err(error),
        None => Ok(states),
    }
}

struct Shared<N, T, E, D> {
    /// The number of the next piece, and where it comes from.
    source: Mutex<(u64, N)>,
    queue: Mutex<Queue<T, E>>,
    moved: Condvar,
    deliver: Mutex<D>,
}

struct Queue<T, E> {
    /// The piece whose result is delivered next.
    next: u64,
    done: BTreeMap<u64, T>,
    is_delivering: bool,
    stopped: Option<E>,
    failed: bool,
}

impl<N, T, E, D> Shared<N, T, E, D> {
    /// The next piece and its number, once results are not too far behind it.
    fn take<S, P>(&self, state: &mut S, ahead: u64) -> Option<(u64, P)>
    where
        N: FnMut(&mut S) -> Option<P>,
    {
        let mut source = lock(&self.source);
        let mut queue = lock(&self.queue);
        while source.0 >= queue.next + ahead && !queue.failed {
            queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.failed {
            return None;
        }
        drop(queue);
        let piece = (source.1)(state)?;
        let n = source.0;
        source.0 += 1;
        Some((n, piece))
    }

    /// Delivers what can be delivered, unless another thread is at it.
    fn finished(&self, n: u64, result: T)
    where
        D: FnMut(T) -> Result<(), E>,
    {
        let mut queue = lock(&self.queue);
        queue.done.insert(n, result);
        if queue.is_delivering {
            return;
        }
        let mut next = queue.next;
        while let Some(result) = queue.done.remove(&next) {
            queue.is_delivering = true;
            drop(queue);
            let outcome = lock(&self.deliver)(result);
            queue = lock(&self.queue);
            queue.is_delivering = false;
            match outcome {
                Ok(()) if !queue.failed => next += 1,
                Ok(()) => return,
                Err(error) => {
                    queue.stopped = Some(error);
                    queue.failed = true;
                    self.moved.notify_all();
                    return;
                }
            }
            queue.next = next;
            self.moved.notify_all();
        }
    }
}

/// Threads must not wait for a result that will never come.
struct StopOnPanic<'a, N, T, E, D>(&'a Shared<N, T, E, D>);

impl<N, T, E, D> Drop for StopOnPanic<'_, N, T, E, D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.queue).failed = true;
            self.0.moved.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for threads in 1..6 {
            let mut pieces = 0..500u64;
            let mut seen = Vec::new();
            let work = |worked: &mut u64, n: u64| {
                *worked += 1;
                // Later pieces are often ready first.
                std::thread::sleep(std::time::Duration::from_micros((n * 7919) % 200));
                n * n
            };
            let states = in_order(
                vec![0; threads],
                |_| pieces.next(),
                work,
                |n| {
                    seen.push(n);
                    Ok::<(), ()>(())
                },
            );
            assert_eq!(seen, (0..500).map(|n| n * n).collect::<Vec<_>>());
            assert_eq!(states.unwrap().iter().sum::<u64>(), 500);
        }
    }

    #[test]
    fn an_error_ends_it_and_is_the_first_one() {
        for threads in 1..4 {
            let mut taken = 0..1_000_000;
            let result = in_order(
                vec![(); threads],
                |()| taken.next(),
                |(), n| n,
                |n| {
                    if n >= 100 { Err(n) } else { Ok(()) }
                },
            );
            assert_eq!(result, Err(100));
            assert!(taken.start < 200, "{} pieces were taken after the error", taken.start);
        }
    }

    #[test]
    fn nobody_runs_far_ahead_of_a_slow_piece() {
        let mut pieces = 0..1_000u64;
        let finished = std::sync::atomic::AtomicU64::new(0);
        let mut most = 0;
        let work = |(): &mut (), n: u64| {
            if n == 0 {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            finished.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        };
        let deliver = |()| {
            if most == 0 {
                most = finished.load(std::sync::atomic::Ordering::SeqCst);
            }
            Ok::<(), ()>(())
        };
        in_order(vec![(); 4], |()| pieces.next(), work, deliver).unwrap();
        assert!(most <= ahead(4), "{most} pieces were finished before the first was delivered");
    }

    #[test]
    fn a_panic_does_not_leave_the_others_waiting() {
        for panics_at in [0, 3, 500] {
            let mut pieces = 0..1_000;
            let work = |(): &mut (), n: i32| assert_ne!(n, panics_at, "on purpose");
            let all = || in_order(vec![(); 3], |()| pieces.next(), work, |()| Ok::<(), ()>(()));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(all)).is_err());
        }
    }
}
