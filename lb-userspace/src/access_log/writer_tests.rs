use std::fs;
use std::io::{PipeReader, Read as _, pipe};
use std::os::fd::AsFd as _;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::super::queue::CAPACITY;
use super::super::tests::{Directory, keep_warnings, soon, warnings_about};
use super::*;

fn total() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(0))
}

fn open_at(path: &Path) -> LogFile {
    LogFile::open(path, &total()).unwrap()
}

/// A log that writes to a pipe.
fn piped(nonblocking: bool) -> (PipeReader, LogFile, Arc<AtomicU64>) {
    let (reader, writer) = pipe().unwrap();
    if nonblocking {
        fcntl_setfl(&writer, fcntl_getfl(&writer).unwrap() | OFlags::NONBLOCK).unwrap();
    }
    let total = total();
    let file = writer.as_fd().try_clone_to_owned().unwrap().into();
    let log = LogFile::start(Path::new("/pipe"), file, &total).unwrap();
    (reader, log, total)
}

#[test]
fn lines_of_many_threads_are_whole_and_in_order() {
    let directory = Directory::new();
    let path = directory.join("access.log");
    let log = open_at(&path);
    thread::scope(|scope| {
        for writer in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for line in 0..5_000 {
                    log.send(format!("{writer} {line}\n").as_bytes());
                }
            });
        }
    });
    assert!(log.wait_idle(soon()));
    let mut next = [0; 4];
    for line in fs::read_to_string(&path).unwrap().lines() {
        let (writer, line) = line.split_once(' ').unwrap();
        let next = &mut next[writer.parse::<usize>().unwrap()];
        assert_eq!(line.parse::<u32>().unwrap(), *next);
        *next += 1;
    }
    assert_eq!((next, log.dropped()), ([5_000; 4], 0));
}

/// Sends to a pipe that nobody reads until lines are dropped; how many were sent.
fn fill(log: &LogFile, line: &[u8]) -> u64 {
    for sent in 1..1_000_000 {
        log.send(line);
        if log.dropped() > 10 {
            return sent;
        }
    }
    panic!("the queue is not bounded");
}

#[test]
fn a_blocked_pipe_drops_and_delays_nobody() {
    for nonblocking in [false, true] {
        let (mut reader, log, total) = piped(nonblocking);
        let line = [b'x'; 999].into_iter().chain([b'\n']).collect::<Vec<u8>>();
        let sent = fill(&log, &line);
        let bytes = sent * line.len() as u64;
        assert!(bytes < (CAPACITY + (1 << 20)) as u64, "{bytes}");
        assert_eq!(total.load(Relaxed), log.dropped());
        let directory = Directory::new();
        let other = open_at(&directory.join("other.log"));
        other.send(b"line\n");
        assert!(other.wait_idle(soon()), "another file goes on");
        assert!(!log.wait_idle(Instant::now()), "the pipe is full");
        // Once somebody reads, all that was accepted comes.
        let accepted = sent - log.dropped();
        let mut read = vec![0; accepted as usize * line.len()];
        reader.read_exact(&mut read).unwrap();
        assert!(read.chunks(line.len()).all(|chunk| chunk == line));
        assert!(log.wait_idle(soon()));
        log.send(b"end\n");
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "end\n");
    }
}

#[test]
fn short_lines_do_not_take_more_memory_than_long_ones() {
    let (_reader, log, _) = piped(false);
    let accepted = fill(&log, b"x") - log.dropped();
    assert!(accepted as usize <= (CAPACITY + (1 << 20)) / 5, "{accepted}");
}

#[test]
fn closing_is_bounded() {
    let (_reader, log, _) = piped(false);
    fill(&log, &[b'x'; 1000]);
    let deadline = Instant::now() + Duration::from_millis(20);
    log.close(deadline);
    assert!(!log.wait_idle(deadline));
    let before = log.dropped();
    log.send(b"late\n");
    assert_eq!(log.dropped(), before + 1);
}

#[test]
fn a_full_disk_is_counted_and_told_of_once() {
    keep_warnings();
    let directory = Directory::new();
    let path = directory.join("full.log");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let log = open_at(&path);
    for _ in 0..3 {
        log.send(b"one\n");
        log.send(b"two\n");
        assert!(log.wait_idle(soon()));
    }
    assert_eq!(log.dropped(), 6);
    let expected = format!(
        "access log {}: No space left on device (os error 28); lines are dropped until it can be written to again",
        path.display()
    );
    assert_eq!(warnings_about(&path), std::slice::from_ref(&expected));
    // There is room again.
    fs::remove_file(&path).unwrap();
    log.reopen();
    log.send(b"three\n");
    assert!(log.wait_idle(soon()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    assert_eq!(log.dropped(), 6);
    let again = format!("access log {}: lines are written again", path.display());
    assert_eq!(warnings_about(&path), [expected, again]);
}

#[test]
fn a_line_that_was_cut_short_does_not_spoil_the_next() {
    let (mut reader, log, _) = piped(true);
    let queue = Arc::clone(&log.queue);
    let mut writer = Writer {
        path: "/pipe".into(),
        file: File::from(pipe_end(&mut reader)),
        queue,
        dropped: Arc::clone(&log.dropped),
        failing: false,
        torn: false,
    };
    // With the queue closed, a pipe that takes no more is an error.
    log.close(Instant::now());
    let lines = vec![b'x'; 100_000];
    writer.write(&Batch { bytes: lines, ends: vec![10, 100_000] });
    assert!(writer.torn && writer.failing);
    assert_eq!(log.dropped(), 1);
    let taken = PIPE_CAPACITY;
    reader.read_exact(&mut vec![0; taken]).unwrap();
    writer.write(&Batch { bytes: b"next\n".to_vec(), ends: vec![5] });
    drop(writer);
    drop(log);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "\nnext\n");
}

const PIPE_CAPACITY: usize = 65_536;

/// Another pipe in place of `reader`'s: its writing end, which does not block.
fn pipe_end(reader: &mut PipeReader) -> std::os::fd::OwnedFd {
    let (new, writer) = pipe().unwrap();
    fcntl_setfl(&writer, fcntl_getfl(&writer).unwrap() | OFlags::NONBLOCK).unwrap();
    *reader = new;
    writer.into()
}

#[test]
fn reopening_goes_on_in_the_new_file() {
    let directory = Directory::new();
    let (path, old) = (directory.join("access.log"), directory.join("access.log.1"));
    let log = open_at(&path);
    log.send(b"one\n");
    assert!(log.wait_idle(soon()));
    fs::rename(&path, &old).unwrap();
    log.send(b"two\n");
    assert!(log.wait_idle(soon()));
    log.reopen();
    log.send(b"three\n");
    assert!(log.wait_idle(soon()));
    assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
}

#[test]
fn a_file_that_cannot_be_reopened_goes_on_in_the_old_one() {
    keep_warnings();
    let directory = Directory::new();
    let (path, old) = (directory.join("kept.log"), directory.join("kept.log.1"));
    let log = open_at(&path);
    fs::rename(&path, &old).unwrap();
    fs::create_dir(&path).unwrap();
    log.reopen();
    log.send(b"line\n");
    assert!(log.wait_idle(soon()));
    assert_eq!(fs::read_to_string(&old).unwrap(), "line\n");
    let warnings = warnings_about(&path);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].ends_with("; it goes on in the file that was open before"), "{warnings:?}");
    assert_eq!(log.dropped(), 0);
}
