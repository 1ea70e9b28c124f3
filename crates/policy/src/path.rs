//! Path names as bytes.

/// True if `path` is absolute and free of empty, `.` and `..` components and NUL bytes.
#[must_use]
pub fn is_canonical(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/") else {
        return false;
    };
    !path.contains(&0) && (rest.is_empty() || rest.split(|byte| *byte == b'/').all(is_name))
}

/// True if `path` is one component that names an entry of a directory: not `.` or `..`, free of slashes and
/// NUL bytes.
#[must_use]
pub fn is_name(path: &[u8]) -> bool {
    !path.is_empty()
        && path != b"."
        && path != b".."
        && !path.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// True if canonical `path` is `tree` or lies beneath it.
#[must_use]
pub fn beneath(tree: &[u8], path: &[u8]) -> bool {
    tree == b"/"
        || path
            .strip_prefix(tree)
            .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
}

/// The directory of a canonical path; `/` for `/`.
#[must_use]
pub fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => b"/",
        Some(at) => path.get(..at).unwrap_or(b"/"),
    }
}

/// The last component of a canonical path; empty for `/`.
#[must_use]
pub fn file_name(path: &[u8]) -> &[u8] {
    let at = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    path.get(at..).unwrap_or_default()
}

/// `name` in directory `dir`.
#[must_use]
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    if dir != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The path itself and every directory above it, `/` included, longest first.
pub fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut next = Some(path);
    std::iter::from_fn(move || {
        let current = next?;
        next = (current != b"/").then(|| parent(current));
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_paths() {
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(parent(b"/a"), b"/");
        assert_eq!(parent(b"/"), b"/");
        assert_eq!(file_name(b"/a/b"), b"b");
        assert_eq!(file_name(b"/"), b"");
        assert_eq!(join(b"/", b"a"), b"/a");
        assert_eq!(join(b"/a", b"b"), b"/a/b");
        assert!(beneath(b"/a", b"/a/b") && beneath(b"/a", b"/a") && !beneath(b"/a", b"/ab"));
        let all: Vec<&[u8]> = ancestors(b"/a/b").collect();
        assert_eq!(all, [b"/a/b".as_slice(), b"/a", b"/"]);
    }
}
