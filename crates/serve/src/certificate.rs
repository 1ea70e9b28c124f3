//! The certificate of a server and its key, as files: read here, or by a process that may still open them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::listener::{SetupError, reason};

/// Longest file, in bytes: a chain of many certificates takes some tens of thousands.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Time for the process that reads them. A file system that does not answer leaves the certificate as it is.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);

const NAME_FILES: &str = "name a certificate and its key, each a file in PEM";

/// The contents of both files.
pub(crate) struct Pem {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

/// The files with a certificate and its key, in PEM.
#[derive(Debug)]
pub struct CertificateFiles {
    certificate: PathBuf,
    key: PathBuf,
    /// The end of the process that reads them, once there is one.
    helper: Mutex<Option<UnixStream>>,
}

impl CertificateFiles {
    /// Those at these paths, which are read by this process.
    #[must_use]
    pub fn new(certificate: PathBuf, key: PathBuf) -> Self {
        Self {
            certificate,
            key,
            helper: Mutex::new(None),
        }
    }

    /// Has them read by another process from here on: this is its end, for [`CertificateFiles::serve`].
    ///
    /// # Errors
    /// The host's.
    #[expect(
        clippy::disallowed_methods,
        reason = "between this process and its helper"
    )]
    pub fn helper(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(HELPER_PATIENCE))?;
        ours.set_write_timeout(Some(HELPER_PATIENCE))?;
        *self.helper.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
        Ok(theirs)
    }

    /// Reads them for the process at the other end of `end`, as often as that asks and until it is gone.
    pub fn serve(&self, mut end: UnixStream) {
        let mut question = [0];
        while matches!(end.read(&mut question), Ok(1)) {
            for file in [read(&self.certificate), read(&self.key)] {
                let (kind, bytes) = match file {
                    Ok(bytes) => (0, bytes),
                    Err(why) => (1, why.into_bytes()),
                };
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let head = [&[kind][..], &length.to_le_bytes()].concat();
                if end.write_all(&head).is_err() || end.write_all(&bytes).is_err() {
                    return;
                }
            }
        }
    }

    pub(crate) fn certificate(&self) -> &Path {
        &self.certificate
    }

    pub(crate) fn key(&self) -> &Path {
        &self.key
    }

    /// What they hold now.
    pub(crate) fn read(&self) -> Result<Pem, SetupError> {
        let mut helper = self.helper.lock().unwrap_or_else(PoisonError::into_inner);
        let [certificate, key] = match helper.as_mut() {
            None => [read(&self.certificate), read(&self.key)],
            Some(end) => match ask(end) {
                Ok(files) => files,
                Err(error) => {
                    // What is left of its answer would be taken for the next one.
                    let _ = end.shutdown(std::net::Shutdown::Both);
                    return Err(SetupError {
                        message: format!("nobody reads the certificate: {}", reason(&error)),
                        remedy: "start the server again",
                    });
                }
            },
        };
        let of = |what: &str, path: &Path, file: Result<Vec<u8>, String>| {
            file.map_err(|why| SetupError {
                message: format!("cannot read the {what} {}: {why}", path.display()),
                remedy: NAME_FILES,
            })
        };
        Ok(Pem {
            certificate: of("certificate", &self.certificate, certificate)?,
            key: of("key", &self.key, key)?,
        })
    }

    /// A warning, if every user of the machine can read the key.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let file = open(&self.key).ok()?;
        let mode = file.metadata().ok()?.permissions().mode();
        (mode & 0o004 != 0).then(|| {
            format!(
                "every user of this machine can read the key {}; chmod o-r it",
                self.key.display()
            )
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "files of the operator's, which no guest can name"
)]
fn open(path: &Path) -> io::Result<File> {
    // A pipe that nobody writes to is not waited for.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let host = |error: io::Error| reason(&error);
    let file = open(path).map_err(host)?;
    if !file.metadata().map_err(host)?.is_file() {
        return Err("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let mut limited = file.take(FILE_BYTES_MAX + 1);
    limited.read_to_end(&mut bytes).map_err(host)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("it is larger than 1 MiB".to_owned());
    }
    Ok(bytes)
}

/// Both files, as the process at the other end reads them.
fn ask(end: &mut UnixStream) -> io::Result<[Result<Vec<u8>, String>; 2]> {
    end.write_all(&[1])?;
    Ok([answer(end)?, answer(end)?])
}

fn answer(end: &mut UnixStream) -> io::Result<Result<Vec<u8>, String>> {
    let mut head = [0; 5];
    end.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u64::from(u32::from_le_bytes(length));
    if length > FILE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    end.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(match kind {
        0 => Ok(bytes),
        _ => Err(String::from_utf8_lossy(&bytes).into_owned()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "files of the test's")]

    use std::sync::Arc;

    use super::*;

    fn files(directory: &Path) -> CertificateFiles {
        CertificateFiles::new(directory.join("cert.pem"), directory.join("key.pem"))
    }

    /// A directory of the test's own.
    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("kvmlet-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn another_process_reads_them_as_they_are_then() {
        let place = directory("certificates");
        let files = Arc::new(files(&place));
        let end = files.helper().unwrap();
        let helper = Arc::clone(&files);
        let serving = std::thread::spawn(move || helper.serve(end));
        let message = |files: &CertificateFiles| files.read().err().unwrap().message;
        assert!(message(&files).contains("cert.pem: no such file or directory"));
        std::fs::write(place.join("cert.pem"), "one").unwrap();
        assert!(message(&files).contains("key.pem: no such file or directory"));
        for content in ["two", "three"] {
            std::fs::write(place.join("key.pem"), content).unwrap();
            let pem = files.read().unwrap();
            assert_eq!(pem.certificate, b"one");
            assert_eq!(pem.key, content.as_bytes());
        }
        *files.helper.lock().unwrap() = None;
        serving.join().unwrap();
        std::fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn one_that_is_gone_is_said_to_be() {
        let files = files(Path::new("/"));
        drop(files.helper().unwrap());
        for _ in 0..2 {
            let error = files.read().err().unwrap();
            assert!(error.message.starts_with("nobody reads"), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert_eq!(
            read(Path::new("/dev/zero")).unwrap_err(),
            "it is no regular file"
        );
        assert_eq!(read(Path::new("/")).unwrap_err(), "it is no regular file");
    }

    #[test]
    fn a_key_for_everybody_is_warned_of() {
        let place = directory("modes");
        let files = files(&place);
        std::fs::write(place.join("key.pem"), "key").unwrap();
        for (mode, warns) in [(0o600, false), (0o640, false), (0o644, true)] {
            let permissions = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(place.join("key.pem"), permissions).unwrap();
            assert_eq!(files.warning().is_some(), warns, "{mode:o}");
        }
        std::fs::remove_dir_all(place).unwrap();
    }
}
