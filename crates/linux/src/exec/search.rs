//! execvp(3)'s search for a program.

use kvmlet_abi::Errno;

use crate::cx::Cx;
use crate::vfs;

/// The path of the program that execvp(3) would run.
///
/// It is `name` itself if it has a slash. Else it is the first file of this name in the directories of
/// `path` (PATH) that may be executed. One that is there and may not is the answer if there is no other.
pub fn search(cx: &mut Cx<'_>, name: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if name.contains(&b'/') {
        return Some(name.to_vec());
    }
    let mut refused = None;
    for dir in path.split(|byte| *byte == b':') {
        let dir = if dir.is_empty() { &b"."[..] } else { dir };
        let candidate = [dir, b"/", name].concat();
        match vfs::open_exec(cx, &candidate) {
            Ok(file) => {
                vfs::close_exec(cx, file);
                return Some(candidate);
            }
            Err(Errno::EACCES) => refused = Some(candidate),
            Err(_) => {}
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make their own files")]

    use super::*;
    use crate::testing::{Sandbox, TempTree};

    #[test]
    fn a_program_is_found_as_execvp_does() {
        let tree = TempTree::new("search");
        let program = tree.file("second/tool", b"#!/bin/sh\n");
        let data = tree.file("first/tool", b"");
        let mode = |path, mode| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&program, 0o755);
        mode(&data, 0o644);
        let mut sandbox = Sandbox::new(&tree.0);
        let mut find = |name: &str, path: &str| {
            let found = search(&mut sandbox.cx(), name.as_bytes(), path.as_bytes());
            found.map(|found| String::from_utf8(found).unwrap())
        };
        let (first, second) = (
            format!("{}/first", tree.path()),
            format!("{}/second", tree.path()),
        );
        let both = format!("{first}:{second}");
        assert_eq!(find("tool", &both), Some(format!("{second}/tool")));
        assert_eq!(find("tool", &first), Some(format!("{first}/tool")));
        assert_eq!(find("other", &both), None);
        assert_eq!(find("./other", &both), Some("./other".to_owned()));
        // An empty entry is the working directory.
        std::fs::copy(&program, tree.0.join("here")).unwrap();
        assert_eq!(
            find("here", &format!("{first}:")),
            Some("./here".to_owned())
        );
    }
}
