//! Interpreter scripts: `execve(2)`, "Interpreter scripts", and Linux's `fs/binfmt_script.c`.

use crate::ElfError;

/// Number of bytes of a file that Linux examines for a `#!` line, the last one reserved for a NUL
/// (`BINPRM_BUF_SIZE`).
pub const SHEBANG_LEN: usize = 256;

/// Most times in a row that one program may be replaced by its interpreter; one more is ELOOP
/// (`exec_binprm` in Linux's `fs/exec.c`).
pub const MAX_INTERPRETER_DEPTH: u32 = 5;

/// The first line of an interpreter script. The command becomes
/// `interpreter [arg] script-path argv[1]...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shebang {
    /// Path of the interpreter, relative paths allowed; never empty.
    pub interpreter: Vec<u8>,
    /// Everything after the interpreter, as one argument with inner spaces kept.
    pub arg: Option<Vec<u8>>,
}

/// Reads the `#!` line of a file.
///
/// `head` is the start of the file; of it the first [`SHEBANG_LEN`] bytes matter. A file shorter
/// than that must be given whole: its end counts as the end of the line.
///
/// Returns None if the file is no script.
///
/// # Errors
/// [`ElfError::ShebangEmpty`] without an interpreter, [`ElfError::ShebangTooLong`] if its path
/// does not end within 255 bytes (both ENOEXEC). An argument that is cut off there is not an
/// error: the interpreter can read the line itself.
#[must_use]
pub fn parse_shebang(head: &[u8]) -> Option<Result<Shebang, ElfError>> {
    head.starts_with(b"#!").then(|| parse_line(head))
}

/// The line itself. Linux pads the file with NULs to the buffer's size and works with inclusive
/// ends; so does this, byte for byte, because the corner cases (a blank before the end of a file
/// without newline gives an empty argument) follow from it.
fn parse_line(head: &[u8]) -> Result<Shebang, ElfError> {
    let mut buf = [0u8; SHEBANG_LEN];
    for (to, from) in buf.iter_mut().zip(head) {
        *to = *from;
    }
    let last = SHEBANG_LEN.wrapping_sub(1);
    let at = |index: usize| buf.get(index).copied().unwrap_or(0);
    let blank = |byte: u8| byte == b' ' || byte == b'\t';
    let next_text = |from: usize, to: usize| (from..=to).find(|&i| !blank(at(i)));
    let next_end = |from: usize, to: usize| (from..=to).find(|&i| blank(at(i)) || at(i) == 0);

    let newline = buf
        .iter()
        .position(|&b| b == b'\n' || b == 0)
        .filter(|&i| at(i) == b'\n');
    let mut end = match newline {
        Some(index) => index,
        None => {
            let name = next_text(2, last).ok_or(ElfError::ShebangEmpty)?;
            // No blank or NUL after the path: it may continue past what was read.
            next_end(name, last).ok_or(ElfError::ShebangTooLong)?;
            last
        }
    };
    while end > 2 && blank(at(end.wrapping_sub(1))) {
        end = end.wrapping_sub(1);
    }

    let name = next_text(2, end)
        .filter(|&i| i != end)
        .ok_or(ElfError::ShebangEmpty)?;
    let separator = next_end(name, end);
    let argument = separator
        .filter(|&i| at(i) != 0)
        .and_then(|i| next_text(i, end));

    // C strings from here on: they end at the first NUL, at `end`, or at the separator.
    let text = |from: usize, to: usize| -> Vec<u8> {
        (from..to).map(at).take_while(|&byte| byte != 0).collect()
    };
    let interpreter = text(name, separator.unwrap_or(end));
    if interpreter.is_empty() {
        // Linux differs: it takes the empty path for the current directory: EACCES.
        return Err(ElfError::ShebangEmpty);
    }
    Ok(Shebang {
        interpreter,
        arg: argument.map(|from| text(from, end)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(head: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
        let line = parse_shebang(head).unwrap().unwrap();
        (line.interpreter, line.arg)
    }

    fn err(head: &[u8]) -> ElfError {
        parse_shebang(head).unwrap().unwrap_err()
    }

    #[test]
    fn splits_interpreter_and_one_argument() {
        let sh = b"/bin/sh".to_vec();
        assert_eq!(ok(b"#!/bin/sh\necho\n"), (sh.clone(), None));
        assert_eq!(ok(b"#! \t/bin/sh  \t \n"), (sh.clone(), None));
        assert_eq!(
            ok(b"#!/bin/sh -e  -x \t\n"),
            (sh.clone(), Some(b"-e  -x".to_vec()))
        );
        assert_eq!(ok(b"#!/bin/sh"), (sh.clone(), None));
        assert_eq!(ok(b"#!/bin/sh\0 x\n"), (sh.clone(), None));
        assert_eq!(ok(b"#!/bin/sh -x\0y\n"), (sh, Some(b"-x".to_vec())));
        assert_eq!(ok(b"#!/bin/sh\r\n").0, b"/bin/sh\r");
    }

    #[test]
    fn blank_before_the_end_of_file_is_kept() {
        assert_eq!(ok(b"#!/bin/sh "), (b"/bin/sh".to_vec(), Some(Vec::new())));
        assert_eq!(ok(b"#!/bin/sh -x ").1, Some(b"-x ".to_vec()));
    }

    #[test]
    fn refuses_lines_without_an_interpreter() {
        assert_eq!(parse_shebang(b""), None);
        assert_eq!(parse_shebang(b"#"), None);
        assert_eq!(parse_shebang(b"\x7fELF"), None);
        for head in [
            b"#!".as_slice(),
            b"#!\n",
            b"#! \t \n/bin/sh\n",
            b"#!   ",
            b"#!\0x\n",
        ] {
            assert_eq!(err(head), ElfError::ShebangEmpty, "{head:?}");
        }
        assert_eq!(
            err(&[b"#!".as_slice(), &[b' '; 300]].concat()),
            ElfError::ShebangEmpty
        );
    }

    #[test]
    fn path_must_end_within_255_bytes_but_arguments_may_be_cut() {
        let line = |len: usize, tail: &[u8]| [b"#!".as_slice(), &vec![b'a'; len], tail].concat();
        assert_eq!(ok(&line(253, b"\n")).0.len(), 253);
        assert_eq!(ok(&line(253, b" x\n")).0.len(), 253);
        assert_eq!(ok(&line(253, b"")).0.len(), 253);
        assert_eq!(err(&line(254, b"")), ElfError::ShebangTooLong);
        assert_eq!(err(&line(254, b"\n")), ElfError::ShebangTooLong);
        assert_eq!(
            ok(&line(7, &[b" ".as_slice(), &[b'b'; 400]].concat())),
            (vec![b'a'; 7], Some(vec![b'b'; 255 - 2 - 7 - 1]))
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_yields_clean_strings(tail in proptest::collection::vec(
            prop_oneof![Just(b' '), Just(b'\t'), Just(b'\n'), Just(0u8), Just(b'a'), any::<u8>()], 0..300
        )) {
            let head = [b"#!".as_slice(), &tail].concat();
            if let Some(Ok(line)) = parse_shebang(&head) {
                let clean = |text: &[u8]| !text.contains(&0) && !text.contains(&b'\n');
                prop_assert!(!line.interpreter.is_empty() && clean(&line.interpreter));
                prop_assert!(!line.interpreter.iter().any(|b| b" \t".contains(b)));
                prop_assert!(line.arg.is_none_or(|arg| clean(&arg) && arg.len() < SHEBANG_LEN));
            }
        }
    }
}
