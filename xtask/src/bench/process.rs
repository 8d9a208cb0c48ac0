//! Runs a command and watches what it takes: time, memory, bytes from the disk.

use super::limit::Group;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wait4::Wait4;

/// How often the bytes that were read are looked at.
const EVERY: Duration = Duration::from_millis(5);
/// After this a command is ended.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What a command did.
pub struct Run {
    pub stdout: String,
    pub stderr: String,
    pub wall: Duration,
    /// The most bytes that it had in memory, mapped files included; no less than what this program has when it starts
    /// it.
    pub peak: u64,
    /// The most bytes of its group, the page cache included.
    pub group_peak: Option<u64>,
    /// Bytes that came from a disk for it.
    pub read: u64,
    /// CPUs that were busy with something else, on average.
    pub others: f64,
    /// When the first output came.
    output: Option<Duration>,
    /// Bytes that had been read, at several times.
    samples: Vec<(Duration, u64)>,
}

/// Runs a program with arguments. An error if it fails, with what it said.
pub fn run(command: &[OsString], group: Option<&Group>) -> Result<Run, String> {
    let name = || command.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut child = match group {
        None => Command::new(program),
        Some(group) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(group.processes()).arg(program);
            shell
        }
    };
    child.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    forget_own_peak();
    let busy = busy();
    let started = Instant::now();
    let mut child = child.spawn().map_err(|e| format!("{}: {e}", name()))?;
    let stdout = child.stdout.take().map(|out| collect(out, started));
    let stderr = child.stderr.take().map(|out| collect(out, started));
    let samples = watch(&mut child, started);
    let wall = started.elapsed();
    let used = child.wait4().map_err(|e| format!("{}: {e}", name()))?;
    let busy = self::busy().zip(busy).map_or(0.0, |(after, before)| after - before);
    let own = (used.rusage.utime + used.rusage.stime).as_secs_f64();
    // Both are counted in ticks: a short run may seem to take more than everything does.
    let others = ((busy - own) / wall.as_secs_f64()).max(0.0);
    let text =
        |thread: Option<std::thread::JoinHandle<_>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
    let ((stdout, output), (stderr, _)) = (text(stdout), text(stderr));
    if !used.status.success() {
        return Err(format!("{}: {}\n{}", name(), used.status, stderr.trim_end()));
    }
    let read = samples.last().map_or(0, |&(_, bytes)| bytes);
    let group_peak = group.and_then(Group::peak);
    Ok(Run { stdout, stderr, wall, peak: used.rusage.maxrss, group_peak, read, others, output, samples })
}

/// A child shares this program's memory until it becomes another program, and Linux counts that in the child's peak:
/// with the highest that was ever reached, which is made the present one here, by proc_pid_clear_refs(5).
fn forget_own_peak() {
    // Kernels without the file leave peaks that are too high, never too low.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Reads all of a pipe, and notes when its first byte came.
fn collect(
    mut pipe: impl Read + Send + 'static,
    started: Instant,
) -> std::thread::JoinHandle<(String, Option<Duration>)> {
    std::thread::spawn(move || {
        let (mut all, mut piece, mut first) = (Vec::new(), [0; 4096], None);
        while let Ok(n @ 1..) = pipe.read(&mut piece) {
            first.get_or_insert_with(|| started.elapsed());
            all.extend_from_slice(&piece[..n]);
        }
        (String::from_utf8_lossy(&all).into_owned(), first)
    })
}

/// Waits until the child has ended, without taking its remains: their counters are read last.
fn watch(child: &mut Child, started: Instant) -> Vec<(Duration, u64)> {
    let process = Pid::from_raw(child.id().cast_signed());
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    let mut samples = Vec::new();
    loop {
        let running = matches!(waitid(Id::Pid(process), flags), Ok(WaitStatus::StillAlive));
        if let Some(bytes) = read_bytes(child.id()) {
            samples.push((started.elapsed(), bytes));
        }
        if !running {
            return samples;
        }
        if started.elapsed() > PATIENCE {
            // It may have ended just now; then there is nothing to end.
            let _ = child.kill();
        }
        std::thread::sleep(EVERY);
    }
}

/// Seconds that CPUs were busy since the machine started, or taken by its host, by proc_stat(5).
fn busy() -> Option<f64> {
    busy_of(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn busy_of(stat: &str) -> Option<f64> {
    /// What Linux gives times to programs in.
    const TICKS: f64 = 100.0;
    let times: Option<Vec<u64>> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .take(8)
        .map(|t| t.parse().ok())
        .collect();
    // Idle and waiting for disks are the fourth and fifth.
    Some(
        times?.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum::<u64>() as f64
            / TICKS,
    )
}

/// What a process had read from disks, by proc_pid_io(5).
fn read_bytes(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok())
}

impl Run {
    /// Bytes that were read from the disk in the last `seconds` before the first output.
    pub fn read_before_output(&self, seconds: f64) -> Option<f64> {
        let end = self.output?.as_secs_f64();
        Some(between(&self.samples, end) - between(&self.samples, end - seconds))
    }
}

/// Bytes at a time, by a straight line between the samples beside it.
fn between(samples: &[(Duration, u64)], at: f64) -> f64 {
    let after = samples.partition_point(|(time, _)| time.as_secs_f64() < at);
    let point = |i: usize| samples.get(i).map(|&(time, bytes)| (time.as_secs_f64(), bytes as f64));
    match (after.checked_sub(1).and_then(point), point(after)) {
        (Some((t0, b0)), Some((t1, b1))) => b0 + (b1 - b0) * (at - t0) / (t1 - t0).max(1e-9),
        (Some((_, bytes)), None) => bytes,
        // Before the first sample nothing had been read.
        (None, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<OsString> {
        ["sh", "-c", script].map(OsString::from).to_vec()
    }

    #[test]
    fn watches_a_command() {
        let done = run(&shell("sleep 0.05; echo out; echo err >&2"), None).unwrap();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
        assert!(done.wall >= Duration::from_millis(50) && done.peak > 0);
        assert!(done.output.unwrap() >= Duration::from_millis(50) && done.samples.len() > 2);
        let Err(reason) = run(&shell("echo no >&2; exit 3"), None) else { panic!("it failed") };
        assert!(reason.contains("exit status: 3") && reason.ends_with("\nno"), "{reason}");
        assert!(run(&["/nonexistent/program".into()], None).is_err());
    }

    #[test]
    fn a_peak_is_the_commands_own() {
        let large = vec![1u8; 512 << 20];
        assert!(large.iter().step_by(4096).all(|&byte| byte == 1));
        drop(large);
        let done = run(&shell("true"), None).unwrap();
        // Other tests of this process have their memory too, but nothing like that.
        assert!(done.peak < 256 << 20, "{}", done.peak);
    }

    #[test]
    fn bytes_from_the_disk_are_counted() {
        // In the build folder: folders for temporary files may be in memory.
        let program = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        std::fs::write(file.path(), vec![1u8; 1 << 20]).unwrap();
        let Ok(Some(0)) = super::super::disk::evict(file.path()) else { return };
        let done = run(&["cat".into(), file.path().into()], None).unwrap();
        assert!(done.read >= 1 << 20, "{}", done.read);
    }

    #[test]
    fn idle_cpus_are_not_busy() {
        let stat = "cpu  100 10 20 9999 8888 1 2 67 5 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_of(stat), Some(2.0), "guests are in the first two already");
        assert_eq!(busy_of("intr 1 2 3"), None);
    }

    #[test]
    fn lines_between_samples() {
        let samples = [(1.0, 100), (2.0, 300)].map(|(t, b)| (Duration::from_secs_f64(t), b));
        let at = [0.5, 1.0, 1.5, 2.0, 9.0].map(|t| between(&samples, t));
        assert_eq!(at, [0.0, 0.0, 200.0, 300.0, 300.0]);
    }
}
