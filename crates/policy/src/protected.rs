//! Names that make other programs of the user's run something, or hold what they log in with. In a tree that a
//! program may change they stay as they are, unless they are named themselves. Changes of them that are in memory are
//! not kept. This is the one list of them.
//!
//! They are compared as file systems do that are generous about names.

use std::borrow::Cow;

use crate::{file_name, join, parent};

/// Names by their last components, wherever they are; what lies beneath is protected too.
const NAMES: &[&str] = &[
    // Settings that name programs.
    ".gitmodules",
    ".gitconfig",
    ".config/git",
    // Settings of a project that editors and shells act on.
    ".envrc",
    ".mcp.json",
    ".vscode",
    ".idea",
    // Start-up files of editors, debuggers and interpreters. Some are read from the directory that one works in.
    ".config/emacs",
    ".config/gdb",
    ".config/nvim",
    ".config/tmux",
    ".dir-locals.el",
    ".emacs",
    ".emacs.d",
    ".exrc",
    ".gdbearlyinit",
    ".gdbinit",
    ".gvimrc",
    ".irbrc",
    ".lldbinit",
    ".nvimrc",
    ".pdbrc",
    ".pryrc",
    ".psqlrc",
    ".rprofile",
    ".screenrc",
    ".tmux.conf",
    ".vim",
    ".vimrc",
    // Start-up files of shells and sessions.
    ".bash_aliases",
    ".bash_login",
    ".bash_logout",
    ".bash_profile",
    ".bashrc",
    ".cshrc",
    ".inputrc",
    ".kshrc",
    ".login",
    ".logout",
    ".pam_environment",
    ".profile",
    ".tcshrc",
    ".xinitrc",
    ".xprofile",
    ".xsessionrc",
    ".zlogin",
    ".zlogout",
    ".zprofile",
    ".zshenv",
    ".zshrc",
    ".config/autostart",
    ".config/environment.d",
    ".config/fish",
    ".config/systemd",
    ".config/xonsh",
    ".config/nushell",
    // Keys and passwords.
    ".aws",
    ".azure",
    ".boto",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".composer/auth.json",
    ".config/containers/auth.json",
    ".config/doctl",
    ".config/gcloud",
    ".config/gh",
    ".config/glab-cli",
    ".config/hub",
    ".config/rclone",
    ".docker/config.json",
    ".gem/credentials",
    ".git-credentials",
    ".gnupg",
    ".huggingface",
    ".kube",
    ".my.cnf",
    ".netrc",
    ".npmrc",
    ".oci",
    ".pgpass",
    ".pypirc",
    ".s3cfg",
    ".ssh",
    ".terraform.d",
    ".terraformrc",
    ".vault-token",
];

/// Names in homes that tell of their user, besides those: no program may even read them unless they are named to it.
const PRIVATE: &[&str] = &[
    ".bash_history",
    ".bitcoin",
    ".config/1password",
    ".config/bravesoftware",
    ".config/chromium",
    ".config/google-chrome",
    ".config/microsoft-edge",
    ".config/op",
    ".config/pulse",
    ".config/signal",
    ".config/slack",
    ".config/sops",
    ".docker",
    ".electrum",
    ".iceauthority",
    ".lesshst",
    ".local/share/fish",
    ".local/share/keyrings",
    ".local/share/kwalletd",
    ".mozilla",
    ".mysql_history",
    ".node_repl_history",
    ".password-store",
    ".psql_history",
    ".python_history",
    ".sqlite_history",
    ".thunderbird",
    ".viminfo",
    ".xauthority",
    ".zsh_history",
];

/// Sets of changes that are saved, for kvmlet itself to make, begin so.
const SAVED_SET: &str = ".kvmlet-changes-";

/// The directory of a repository in its work tree; as anything else it leads git to one elsewhere.
const GIT: &str = ".git";
/// Names in it that hold data only, whatever their components are called: branches have names of any kind.
const GIT_DATA: [&str; 3] = ["refs", "logs", "objects"];
/// Names in it with git directories of submodules and of other work trees, at any depth.
const GIT_NESTED: [&str; 2] = ["modules", "worktrees"];
/// Programs that git runs: what is in there.
const GIT_HOOKS: &str = "hooks";
/// Files that git puts beside its hooks and never runs end so.
const SAMPLE: &str = ".sample";
/// Settings of git, which may name programs.
const GIT_SETTINGS: [&str; 2] = ["config", "config.worktree"];
/// It leads git from a work tree's directory to it.
const GIT_POINTER: &str = "gitdir";
/// It leads git to a repository elsewhere, from any directory that also has a `HEAD`.
const GIT_COMMON: &str = "commondir";

/// Git takes a directory that has these, and `refs`, for a repository, whatever it is called.
const REPOSITORY: [&str; 2] = ["HEAD", "objects"];
/// Directories of hooks that are looked at in one path, the innermost first: git runs what is in the last only.
const HOOKS_MAX: usize = 3;

/// The protection that a path has, from none to all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Guard {
    /// None.
    None,
    /// There may be a git directory, with protected names beneath: a link or a directory that is moved here would bring
    /// others, one that leaves would take them along.
    Nested,
    /// A directory that leads to protected names: anything else in its place would have them elsewhere.
    Leading,
    /// Settings of git, protected unless they name no program.
    Settings,
    /// It is a protected name, or lies in one.
    Whole,
}

impl Guard {
    /// True for what stays as it is.
    #[must_use]
    pub fn is_protected(self) -> bool {
        self >= Self::Settings
    }
}

/// Names that fit, each with the number of components of the part of the path that it protects.
type Fits = Vec<(Guard, usize)>;

/// The protection of canonical `path`. `exists` says if there is something at another path; `is_free` says if a part
/// of `path` that would be protected is not.
#[must_use]
pub fn guard_of(
    path: &[u8],
    exists: impl FnMut(&[u8]) -> bool,
    is_free: impl Fn(&[u8]) -> bool,
) -> Guard {
    let named = by_name(path, &is_free);
    if named.is_protected() {
        return named;
    }
    named.max(in_repository(path, exists, is_free))
}

/// The protection that a canonical path has by its own components.
pub(crate) fn by_name(path: &[u8], is_free: impl Fn(&[u8]) -> bool) -> Guard {
    let parts = Components::of(path);
    let names = &parts.names;
    let mut fits = Fits::new();
    // The nearest directory of hooks further down.
    let mut hooks = None;
    for at in (0..names.len()).rev() {
        let rest = names.get(at..).unwrap_or_default();
        let Some(name) = rest.first() else { continue };
        for wanted in NAMES {
            fits.extend(fit(rest, wanted).map(|(guard, len)| (guard, at + len)));
        }
        if name.starts_with(SAVED_SET) {
            fits.push((Guard::Whole, at + 1));
        }
        if is(name, GIT) {
            fits.extend(in_git(names, at + 1, hooks));
        }
        if is(name, GIT_HOOKS) {
            hooks = Some(at);
        }
        if at + 1 == names.len() && is(name, GIT_COMMON) {
            fits.push((Guard::Whole, names.len()));
        }
    }
    parts.strongest(fits, is_free)
}

/// The protection from being read that a canonical path has by its own components, as one of [`PRIVATE`].
pub(crate) fn private_by_name(path: &[u8]) -> Guard {
    let parts = Components::of(path);
    let mut fits = Fits::new();
    for at in 0..parts.names.len() {
        let rest = parts.names.get(at..).unwrap_or_default();
        for wanted in PRIVATE {
            fits.extend(fit(rest, wanted).map(|(guard, len)| (guard, at + len)));
        }
    }
    parts.strongest(fits, |_| false)
}

/// The protection that a canonical path has in a repository of any name ([`REPOSITORY`]).
pub(crate) fn in_repository(
    path: &[u8],
    mut exists: impl FnMut(&[u8]) -> bool,
    is_free: impl Fn(&[u8]) -> bool,
) -> Guard {
    let parts = Components::of(path);
    let names = &parts.names;
    let mut places: Vec<_> = names
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, name)| is(name, GIT_HOOKS))
        .take(HOOKS_MAX)
        .map(|(at, _)| (at, in_hooks(names, at)))
        .collect();
    if let Some((last, dir)) = names.split_last()
        && GIT_SETTINGS.iter().any(|wanted| is(last, wanted))
    {
        places.push((dir.len(), (Guard::Settings, names.len())));
    }
    let mut fits = Fits::new();
    for (at, fit) in places {
        let dir = parts.part(at);
        let mut has = |name: &&str| exists(&join(dir, name.as_bytes()));
        if REPOSITORY.iter().all(&mut has) {
            fits.push(fit);
        }
    }
    parts.strongest(fits, is_free)
}

/// True if something new at canonical `path` would make a repository of its directory, and that has settings or hooks
/// already. They would be obeyed from then on. The same holds for what is taken away: without it they are not
/// protected. `exists` says if there is something at another path, `acts` if there are such settings or hooks.
#[must_use]
pub fn makes_repository(
    path: &[u8],
    mut exists: impl FnMut(&[u8]) -> bool,
    mut acts: impl FnMut(&[u8]) -> bool,
) -> bool {
    let name = folded(file_name(path));
    let mut parts = REPOSITORY.iter();
    if !parts.any(|wanted| wanted.eq_ignore_ascii_case(&name)) {
        return false;
    }
    let dir = parent(path);
    // Those of a git directory are protected by their names.
    if by_name(&join(dir, GIT_HOOKS.as_bytes()), |_| false) != Guard::None {
        return false;
    }
    let mut others = REPOSITORY
        .iter()
        .filter(|other| !other.eq_ignore_ascii_case(&name));
    let mut settings = GIT_SETTINGS.iter().chain([&GIT_HOOKS]);
    others.all(|name| exists(&join(dir, name.as_bytes())))
        && settings.any(|name| acts(&join(dir, name.as_bytes())))
}

/// True if canonical `path` lies in a saved set of changes.
#[must_use]
pub fn is_saved_set(path: &[u8]) -> bool {
    let parts = Components::of(path);
    parts.names.iter().any(|name| name.starts_with(SAVED_SET))
}

/// The components of a canonical path, folded, and the places where they end.
struct Components<'a> {
    path: &'a [u8],
    names: Vec<Cow<'a, str>>,
    ends: Vec<usize>,
}

impl<'a> Components<'a> {
    fn of(path: &'a [u8]) -> Self {
        let mut end = 0;
        let mut parts = Self {
            path,
            names: Vec::new(),
            ends: Vec::new(),
        };
        for name in path.split(|byte| *byte == b'/') {
            end += name.len();
            if !name.is_empty() {
                parts.names.push(folded(name));
                parts.ends.push(end);
            }
            end += 1;
        }
        parts
    }

    /// The path of the first `len`.
    fn part(&self, len: usize) -> &'a [u8] {
        let end = len.checked_sub(1).and_then(|last| self.ends.get(last));
        end.and_then(|end| self.path.get(..*end)).unwrap_or(b"/")
    }

    /// The strongest protection of those that fit.
    fn strongest(&self, fits: Fits, is_free: impl Fn(&[u8]) -> bool) -> Guard {
        let stays =
            |(guard, len): &(Guard, usize)| !guard.is_protected() || !is_free(self.part(*len));
        let guards = fits.into_iter().filter(stays).map(|(guard, _)| guard);
        guards.max().unwrap_or(Guard::None)
    }
}

/// The way that components fit a name with slashes, from its start on.
fn fit(names: &[Cow<'_, str>], wanted: &str) -> Option<(Guard, usize)> {
    let mut len = 0;
    for wanted in wanted.split('/') {
        let Some(name) = names.get(len) else {
            return Some((Guard::Leading, len));
        };
        if !is(name, wanted) {
            return None;
        }
        len += 1;
    }
    Some((Guard::Whole, len))
}

/// The protection of what lies in a git directory, whose names start at `from`.
fn in_git(names: &[Cow<'_, str>], from: usize, hooks: Option<usize>) -> Option<(Guard, usize)> {
    let Some(first) = names.get(from) else {
        return Some((Guard::Leading, from));
    };
    if GIT_DATA.contains(&&**first) {
        return None;
    }
    // Git directories of submodules are further down.
    if let Some(at) = hooks {
        return Some(in_hooks(names, at));
    }
    let last = names.last()?;
    let guard = if GIT_SETTINGS.iter().any(|wanted| is(last, wanted)) {
        Guard::Settings
    } else if is(last, GIT_POINTER) {
        Guard::Whole
    } else if GIT_NESTED.iter().any(|nested| is(first, nested)) {
        Guard::Nested
    } else {
        return None;
    };
    Some((guard, names.len()))
}

/// The protection of what lies in the directory of hooks at place `at`.
fn in_hooks(names: &[Cow<'_, str>], at: usize) -> (Guard, usize) {
    let beneath = names.get(at + 1..).unwrap_or_default();
    match beneath {
        [] => (Guard::Leading, names.len()),
        [name] if name.ends_with(SAMPLE) => (Guard::None, names.len()),
        [name, ..] if name.ends_with(SAMPLE) => (Guard::Whole, at + 3),
        _ => (Guard::Whole, at + 2),
    }
}

/// True if a folded component is a name, or what file systems with short names may call it.
fn is(name: &str, wanted: &str) -> bool {
    name == wanted || name.contains('~') && is_short(name, wanted)
}

/// True if `name` is a short form of `wanted` on a FAT or NTFS file system: up to six letters of it, a tilde and a
/// number; or, after some of those, two letters and a checksum.
fn is_short(name: &str, wanted: &str) -> bool {
    let Some((stem, rest)) = name.rsplit_once('~') else {
        return false;
    };
    let number = rest.split('.').next().unwrap_or_default();
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let base = wanted.trim_start_matches('.');
    let base = base.split('.').next().unwrap_or_default();
    let checked = stem.get(2..).is_some_and(|sum| {
        sum.len() == 4
            && sum.bytes().all(|byte| byte.is_ascii_hexdigit())
            && stem.get(..2) == base.get(..2)
    });
    is_number && stem.len() >= 2 && (base.starts_with(stem) || checked)
}

/// A component as a file system that ignores case may find it: without what is not seen, in small letters. Dots and
/// spaces at the end, and what follows a colon, are not part of a name everywhere.
fn folded(part: &[u8]) -> Cow<'_, str> {
    let plain = |byte: &u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    // A dot at the end is none of them.
    let is_plain = part.strip_prefix(b".").unwrap_or(part).iter().all(plain);
    let text = String::from_utf8_lossy(part);
    if is_plain {
        return text;
    }
    let mut whole = String::with_capacity(text.len());
    for letter in text.chars().filter(|letter| !is_ignorable(*letter)) {
        match several(letter) {
            Some(letters) => whole.push_str(letters),
            None => whole.extend(letter.to_lowercase()),
        }
    }
    let name = whole.split(':').next().unwrap_or_default();
    let name = name.trim_end_matches([' ', '.']);
    match name.len() {
        0 => Cow::Owned(whole),
        len => {
            whole.truncate(len);
            Cow::Owned(whole)
        }
    }
}

/// Letters that are compared as others than their small ones (Unicode's CaseFolding.txt), as far as those are ASCII.
fn several(letter: char) -> Option<&'static str> {
    Some(match letter {
        '\u{17f}' => "s",
        '\u{df}' | '\u{1e9e}' => "ss",
        '\u{fb00}' => "ff",
        '\u{fb01}' => "fi",
        '\u{fb02}' => "fl",
        '\u{fb03}' => "ffi",
        '\u{fb04}' => "ffl",
        '\u{fb05}' | '\u{fb06}' => "st",
        _ => return None,
    })
}

/// Unicode's Default_Ignorable_Code_Point, as far as file systems leave them out when they compare.
fn is_ignorable(letter: char) -> bool {
    matches!(
        letter,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(path: &str) -> Guard {
        guard_of(path.as_bytes(), |_| false, |_| false)
    }

    #[test]
    fn protected_names_anywhere_and_in_any_spelling() {
        for path in [
            "/p/.git/hooks/pre-commit",
            "/p/.git/hooks/d/x.sample",
            "/p/.git/hooks/d.sample/x",
            "/p/.git/modules/lib/deep/hooks/update",
            "/p/.git/worktrees/w/gitdir",
            "/p/x/commondir",
            "/p/GIT~1/hooks/x",
            "/p/gi3f2a~1/hooks/x",
            "/p/.git. ./hooks/x",
            "/p/.git::$INDEX_ALLOCATION/hooks/x",
            "/p/q/.vscode/a/b",
            "/p/VSCODE~2/a",
            "/p/bash_p~1",
            "/h/.ssh/.vscode",
            "/h/.\u{df}h/x",
            "/h/.config/fish",
            "/h/.con\u{fb01}g/fish/x",
            "/h/.config/containers/auth.json",
            "/.envrc",
            "/p/.ba\u{17f}hrc",
            "/p/.en\u{200c}vrc",
            "/p/.netrc",
            "/p/.kvmlet-changes-0/manifest",
        ] {
            assert_eq!(guard(path), Guard::Whole, "{path}");
        }
        for path in [
            "/p/.git/config",
            "/p/.GIT/Config",
            "/p/.git/con\u{fb01}g",
            "/p/.git/config.worktree",
            "/p/.git/modules/lib/deep/config",
        ] {
            assert_eq!(guard(path), Guard::Settings, "{path}");
        }
        for path in [
            "/",
            "/p/.git/refs/heads/hooks/x",
            "/p/.git/objects/config",
            "/p/.git/index",
            "/p/.git/hooks/pre-commit.sample",
            "/p/config",
            "/p/hooks/pre-commit",
            "/p/x.git/config",
            "/p/vscode",
            "/p/.envrc2",
            "/p/.gitignore",
            "/p/.github/workflows/ci.yml",
            "/p/...",
            "/p/~1",
            "/p/v~1",
            "/p/config~",
        ] {
            assert_eq!(guard(path), Guard::None, "{path}");
        }
    }

    #[test]
    fn what_leads_to_protected_names() {
        for path in [
            "/p/.git",
            "/p/.git/hooks",
            "/.config",
            "/p/.Cargo",
            "/p/.git/modules/s/hooks",
        ] {
            assert_eq!(guard(path), Guard::Leading, "{path}");
        }
        for path in [
            "/p/.git/worktrees",
            "/p/.Git/modules/sub",
            "/.git/modules/a/b/HEAD",
        ] {
            assert_eq!(guard(path), Guard::Nested, "{path}");
        }
    }

    #[test]
    fn repositories_of_any_name() {
        let there = |path: &[u8]| {
            let text = String::from_utf8_lossy(path);
            let (dir, name) = text.rsplit_once('/').unwrap_or_default();
            dir == "/p/bare" && REPOSITORY.contains(&name)
        };
        let guard = |path: &str| guard_of(path.as_bytes(), there, |_| false);
        assert_eq!(guard("/p/bare/config"), Guard::Settings);
        assert_eq!(guard("/p/bare/hooks/update"), Guard::Whole);
        assert_eq!(guard("/p/bare/Hooks"), Guard::Leading);
        assert_eq!(guard("/p/bare/hooks/x.sample"), Guard::None);
        assert_eq!(guard("/p/bare/description"), Guard::None);
        assert_eq!(guard("/p/other/config"), Guard::None);
        assert_eq!(guard("/p/bare/hooks/hooks/hooks/hooks/x"), Guard::None);
    }

    #[test]
    fn making_a_repository_of_settings() {
        fn makes(path: &[u8], has: impl Fn(&[u8]) -> bool) -> bool {
            makes_repository(path, &has, &has)
        }
        let has = |names: &'static [&str]| {
            move |path: &[u8]| names.iter().any(|name| path == name.as_bytes())
        };
        let most = has(&["/d/HEAD", "/d/hooks"]);
        assert!(makes(b"/d/objects", most));
        assert!(makes(b"/d/Objects", most));
        assert!(!makes(b"/d/other", most));
        assert!(!makes(b"/d/objects", has(&["/d/HEAD"])));
        assert!(!makes(b"/d/objects", has(&["/d/config"])));
        assert!(makes(b"/d/HEAD", has(&["/d/objects", "/d/config"])));
        let git = has(&["/.git/HEAD", "/.git/config"]);
        assert!(!makes(b"/.git/objects", git));
    }

    #[test]
    fn a_part_that_is_free() {
        let free = |part: &[u8]| part == b"/p/.vscode";
        let guard = |path: &str| guard_of(path.as_bytes(), |_| false, free);
        assert_eq!(guard("/p/.vscode/a"), Guard::None);
        assert_eq!(guard("/p/.vscode/.git/config"), Guard::Settings);
        assert_eq!(guard("/p/.vscode/.envrc"), Guard::Whole);
        let free = |part: &[u8]| part == b"/p/.git/hooks/x";
        let path = b"/p/.git/hooks/x/y";
        assert_eq!(guard_of(path, |_| false, free), Guard::None);
    }

    #[test]
    fn a_long_path_takes_one_pass() {
        let path = b"/.git".repeat(10_000);
        assert_eq!(
            guard_of(&path, |_| panic!("nothing is asked"), |_| false),
            Guard::Leading
        );
        let path = b"/hooks".repeat(10_000);
        let mut asked = 0;
        let exists = |_: &[u8]| {
            asked += 1;
            false
        };
        assert_eq!(guard_of(&path, exists, |_| false), Guard::None);
        assert!(asked <= HOOKS_MAX);
    }
}
