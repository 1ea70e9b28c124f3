//! Sends each message back in capitals. The two calls need no library:
//!
//!     rustc --edition 2024 -O echo.rs
//!
//! On its own it takes messages from standard input, each behind its length:
//!
//!     printf '\5\0\0\0hello' | ./echo | od -c

use std::arch::asm;
use std::io::{Error, ErrorKind, Read, Result, Write, stdin, stdout};

/// System call numbers, as in kvmlet.h.
const RECEIVE: usize = 7000;
const SEND: usize = 7001;
/// What Linux answers to numbers that it does not know.
const ENOSYS: i32 = 38;
const MESSAGE_MAX: usize = 16 << 20;

/// A call of four arguments, the last two 0.
fn call(number: usize, address: *const u8, len: usize) -> Result<usize> {
    let result: isize;
    // SAFETY: these calls access no memory but `len` bytes at `address`, which the callers own, and
    // for writing when it is RECEIVE.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") address, in("rsi") len, in("rdx") 0, in("r10") 0,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    usize::try_from(result).map_err(|_| Error::from_raw_os_error(-result as i32))
}

/// The next message; `None` after the last one.
fn receive(buffer: &mut [u8]) -> Result<Option<&[u8]>> {
    let len = match call(RECEIVE, buffer.as_mut_ptr(), buffer.len()) {
        Err(error) if error.raw_os_error() == Some(ENOSYS) => {
            let mut prefix = [0; 4];
            match stdin().read_exact(&mut prefix) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                other => other?,
            }
            let len = u32::from_le_bytes(prefix) as usize;
            let place = buffer.get_mut(..len).ok_or(ErrorKind::InvalidData)?;
            stdin().read_exact(place)?;
            len
        }
        other => other?,
    };
    Ok(Some(&buffer[..len]))
}

fn send(message: &[u8]) -> Result<()> {
    match call(SEND, message.as_ptr(), message.len()) {
        Err(error) if error.raw_os_error() == Some(ENOSYS) => {
            let mut out = stdout().lock();
            out.write_all(&(message.len() as u32).to_le_bytes())?;
            out.write_all(message)?;
            out.flush()
        }
        other => other.map(|_| ()),
    }
}

fn main() -> Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX];
    while let Some(message) = receive(&mut buffer)? {
        send(&message.to_ascii_uppercase())?;
    }
    Ok(())
}
