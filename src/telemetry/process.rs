//! What the kernel knows of this process, under the names that every Prometheus client uses.

use std::sync::{Mutex, PoisonError};

use prometheus::{Counter, Gauge, IntGauge, Registry};

use super::metrics::register;

/// Ticks a second in `/proc`: USER_HZ, the same on all that Linux and Rust share but Alpha.
const TICKS: f64 = 100.0;

pub struct ProcessMetrics {
    resident: IntGauge,
    start_time: Gauge,
    cpu: Mutex<Counter>,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
}

impl ProcessMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let whole = |name: &str, help: &str| register(r, IntGauge::new(name, help));
        let cpu = Counter::new("process_cpu_seconds_total", "Time of all cores, user's and system's, in seconds.");
        let start_time = Gauge::new("process_start_time_seconds", "When the process started, in seconds since 1970.");
        ProcessMetrics {
            resident: whole("process_resident_memory_bytes", "Memory that the process has in RAM."),
            start_time: register(r, start_time),
            cpu: Mutex::new(register(r, cpu)),
            open_fds: whole("process_open_fds", "Open file descriptors."),
            max_fds: whole("process_max_fds", "Most file descriptors that may be open."),
            threads: whole("process_threads", "Threads of the process."),
        }
    }

    /// Asks the kernel. What it does not tell stays as it was.
    pub(super) fn refresh(&self) {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let status = read("/proc/self/status");
        if let Some(kilobytes) = field(&status, "VmRSS:") {
            self.resident.set(kilobytes as i64 * 1024);
        }
        if let Some(threads) = field(&status, "Threads:") {
            self.threads.set(threads as i64);
        }
        let stat = read("/proc/self/stat");
        if let Some(seconds) = cpu_seconds(&stat) {
            // Two scrapes at a time must not both add.
            let cpu = self.cpu.lock().unwrap_or_else(PoisonError::into_inner);
            cpu.inc_by((seconds - cpu.get()).max(0.0));
        }
        if let (Some(ticks), Some(booted)) = (start_ticks(&stat), field(&read("/proc/stat"), "btime")) {
            self.start_time.set(booted + ticks / TICKS);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // Without the one that looks.
            self.open_fds.set(open.count() as i64 - 1);
        }
        if let Some(most) = field(&read("/proc/self/limits"), "Max open files") {
            self.max_fds.set(most as i64);
        }
    }
}

/// The first number on the line that begins with the name.
fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The n-th field of `/proc/PID/stat` as `proc(5)` counts them, for n > 2: the name before them may hold anything.
fn nth(stat: &str, n: usize) -> Option<f64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(n - 3)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((nth(stat, 14)? + nth(stat, 15)?) / TICKS)
}

fn start_ticks(stat: &str) -> Option<f64> {
    nth(stat, 22)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_kernel_are_read_whatever_the_program_is_called() {
        let stat = "42 (a ) 1 (b) S 1 42 42 0 -1 4194560 900 0 1 0 250 50 0 0 20 0 9 0 123456 700000 5000 18446744073709551615";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(start_ticks(stat), Some(123_456.0));
        assert_eq!(field("VmPeak:\t9 kB\nVmRSS:\t  5120 kB\n", "VmRSS:"), Some(5120.0));
        assert_eq!(
            field("Max open files            1024                 4096                 files", "Max open files"),
            Some(1024.0)
        );
        assert_eq!(cpu_seconds("cut off"), None);
    }

    #[test]
    fn this_process_has_memory_files_and_a_start() {
        let registry = Registry::new();
        let process = ProcessMetrics::new(&registry);
        let _open = std::fs::File::open("/proc/self/status").expect("the kernel's own file");
        process.refresh();
        process.refresh();
        assert!(process.resident.get() > 1 << 20, "{}", process.resident.get());
        assert!(process.open_fds.get() > 1 && process.open_fds.get() <= process.max_fds.get());
        assert!(process.threads.get() >= 1);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let started = process.start_time.get();
        assert!(started > 1_600_000_000.0 && started <= now + 1.0, "{started} of {now}");
        let cpu = process.cpu.lock().expect("whole").get();
        assert!(cpu <= (now - started + 1.0) * 1024.0, "added once: {cpu}");
    }
}
