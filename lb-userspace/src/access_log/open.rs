//! Opening the files that logs are written to.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, OFlags};

/// Why a log cannot be written to, and what to do about it.
#[derive(Debug)]
pub struct OpenError {
    path: PathBuf,
    error: io::Error,
}

impl OpenError {
    pub(super) fn new(path: &Path, error: io::Error) -> Self {
        Self { path: path.to_owned(), error }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, error } = self;
        write!(f, "the access log {} cannot be opened: {error}", path.display())?;
        let directory = directory(path).display();
        match error.kind() {
            io::ErrorKind::NotFound => write!(f, "; create the directory {directory}, or give another path"),
            io::ErrorKind::NotADirectory => write!(f, "; {directory} has to be a directory"),
            io::ErrorKind::IsADirectory => f.write_str("; give the path of a file in it"),
            io::ErrorKind::PermissionDenied => {
                f.write_str("; let the user that Headgate runs as write there, or give another path")
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                f.write_str("; give a path on a file system that can be written to")
            }
            _ if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                f.write_str("; it is a socket, or a FIFO that no process reads from")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Whether a log could be opened, without creating it.
pub fn check_writable(path: &Path) -> Result<(), OpenError> {
    check(path, 8).map_err(|error| OpenError::new(path, error))
}

fn check(path: &Path, links: u32) -> io::Result<()> {
    // The reader of a FIFO takes it for the end of the log if somebody opens and closes it.
    if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return Ok(rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?);
    }
    match open_with(path, OpenOptions::new().append(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(drop),
    }
    let directory = directory(path);
    // A link to a file that does not exist yet: that is the file which would be created.
    if let Ok(target) = fs::read_link(path) {
        return match links.checked_sub(1) {
            Some(links) => check(&directory.join(target), links),
            None => Err(rustix::io::Errno::LOOP.into()),
        };
    }
    if !fs::metadata(directory)?.is_dir() {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    // Two questions, so that the answer of a read-only file system is its own.
    for access in [Access::EXEC_OK, Access::WRITE_OK] {
        rustix::fs::accessat(CWD, directory, access, AtFlags::EACCESS)?;
    }
    Ok(())
}

/// Opens a log for appending, and creates it if need be.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_with(path, OpenOptions::new().append(true).create(true))
}

fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Opening these by name fails where they are sockets or another user's terminal, and starts a file anew at its
    // beginning; the process has them open already.
    match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => return duplicate(io::stdout().as_fd()),
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => return duplicate(io::stderr().as_fd()),
        _ => {}
    }
    // A FIFO without a reader would block right here. A terminal must not become the process's own.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

fn duplicate(descriptor: BorrowedFd<'_>) -> io::Result<File> {
    let mode = rustix::fs::fcntl_getfl(descriptor)? & OFlags::RWMODE;
    if mode == OFlags::RDONLY {
        return Err(rustix::io::Errno::BADF.into());
    }
    Ok(descriptor.try_clone_to_owned()?.into())
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use rustix::fs::{FileType, Mode};

    use super::super::tests::Directory;
    use super::*;

    fn refused(path: &Path) -> String {
        let checked = check_writable(path).unwrap_err().to_string();
        let opened = OpenError::new(path, open(path).unwrap_err()).to_string();
        assert_eq!(checked, opened);
        checked
    }

    #[test]
    fn a_check_creates_nothing() {
        let directory = Directory::new();
        let path = directory.join("new.log");
        check_writable(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "old\n").unwrap();
        check_writable(&path).unwrap();
        open(&path).unwrap().write_all(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\nnew\n");
        let link = directory.join("link.log");
        std::os::unix::fs::symlink("target.log", &link).unwrap();
        check_writable(&link).unwrap();
        assert!(!directory.join("target.log").exists());
    }

    #[test]
    fn what_cannot_be_opened_is_explained() {
        let directory = Directory::new();
        let missing = directory.join("missing/access.log");
        let error = refused(&missing);
        let parent = directory.join("missing");
        let expected = format!(
            "the access log {} cannot be opened: No such file or directory (os error 2); create the directory {}, or \
             give another path",
            missing.display(),
            parent.display()
        );
        assert_eq!(error, expected);
        assert!(
            refused(&directory.join(""))
                .ends_with("Is a directory (os error 21); give the path of a file in it")
        );
        fs::write(directory.join("file"), "").unwrap();
        assert!(refused(&directory.join("file/access.log")).ends_with("file has to be a directory"));
        let fifo = directory.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Its reader may come until the log is opened.
        check_writable(&fifo).unwrap();
        let error = OpenError::new(&fifo, open(&fifo).unwrap_err()).to_string();
        assert!(error.ends_with("it is a socket, or a FIFO that no process reads from"), "{error}");
        let dangling = directory.join("dangling");
        std::os::unix::fs::symlink("missing/x.log", &dangling).unwrap();
        assert!(check_writable(&dangling).is_err());
        let circle = directory.join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(check_writable(&circle).is_err());
    }

    #[test]
    fn a_descriptor_may_be_a_socket() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        duplicate(ours.as_fd()).unwrap().write_all(b"line\n").unwrap();
        drop(ours);
        let mut read = String::new();
        theirs.read_to_string(&mut read).unwrap();
        assert_eq!(read, "line\n");
        let reading = File::open("/dev/null").unwrap();
        assert!(duplicate(reading.as_fd()).is_err());
        check_writable(Path::new("/dev/stdout")).unwrap();
        check_writable(Path::new("/dev/stderr")).unwrap();
    }
}
