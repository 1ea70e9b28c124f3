//! Why a sandbox could not be run.

use std::any::Any;

use kvmlet_abi::Errno;
use kvmlet_hv::HvError;
use kvmlet_linux::exec::ExecError;
use kvmlet_mem::MemError;

/// Why a program could not be started, or what of ours failed. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such program.
    #[error("{0}: not found")]
    NotFound(String),
    /// The program is there but may not be executed.
    #[error("{program}: {why}")]
    NotExecutable {
        /// Its path.
        program: String,
        /// Why not.
        why: String,
    },
    /// The program is a directory.
    #[error("{0}: is a directory, not a program")]
    IsDirectory(String),
    /// Not a program that this machine runs.
    #[error("{program}: cannot be run: {why}")]
    Format {
        /// Its path.
        program: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting that cannot be used.
    #[error("{0}")]
    BadArgument(String),
    /// KVM cannot be used.
    #[error("{0}")]
    Kvm(#[from] HvError),
    /// The host refused memory or a descriptor.
    #[error("{0}")]
    Host(String),
    /// A fault of kvmlet itself.
    #[error("internal error: {0}")]
    Internal(String),
}

impl EngineError {
    pub(crate) fn from_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        Self::Internal(text.to_owned())
    }

    /// The kind of error, as the Python layer names it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::NotExecutable { .. } => "not_executable",
            Self::IsDirectory(_) => "is_directory",
            Self::Format { .. } => "bad_elf",
            Self::BadArgument(_) => "bad_argument",
            Self::Kvm(HvError::Missing) => "kvm_missing",
            Self::Kvm(HvError::Permission) => "kvm_permission",
            Self::Kvm(_) => "kvm_unusable",
            Self::Host(_) => "host",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<MemError> for EngineError {
    fn from(error: MemError) -> Self {
        Self::Host(error.to_string())
    }
}

impl From<kvmlet_mem::OutOfMemory> for EngineError {
    fn from(error: kvmlet_mem::OutOfMemory) -> Self {
        Self::BadArgument(format!(
            "the memory limit is too small to start a program: {error}"
        ))
    }
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// strerror(3) in the few cases that a person meets when starting a program.
fn describe(errno: Errno) -> String {
    match errno {
        Errno::EACCES => {
            "permission denied (not executable, or outside what the sandbox may read)".to_owned()
        }
        Errno::ENOENT => "not found".to_owned(),
        Errno::ELOOP => "too many symbolic links or interpreters".to_owned(),
        Errno::ENOTDIR => "a part of the path is not a directory".to_owned(),
        other => other.name().to_owned(),
    }
}

impl From<ExecError> for EngineError {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Open {
                path,
                errno: Errno::ENOENT,
            } => Self::NotFound(show(&path)),
            ExecError::Directory { path } => Self::IsDirectory(show(&path)),
            ExecError::Open { path, errno } => Self::NotExecutable {
                program: show(&path),
                why: describe(errno),
            },
            ExecError::Interpreter {
                program,
                path,
                errno,
            } => Self::NotExecutable {
                program: show(&program),
                why: format!("its interpreter {}: {}", show(&path), describe(errno)),
            },
            ExecError::Format { path, error } => Self::Format {
                program: show(&path),
                why: error.to_string(),
            },
            ExecError::Build(Errno::ENOMEM) => {
                Self::BadArgument("the memory limit is too small to start the program".to_owned())
            }
            ExecError::Build(errno) => Self::Host(format!("the program cannot be loaded: {errno}")),
        }
    }
}
