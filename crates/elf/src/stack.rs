//! The first stack of a program: System V ABI for x86-64, section 3.4.1, in the layout of Linux's
//! `create_elf_tables`.

use core::ops::Range;

use crate::{ElfError, PATH_MAX, USER_END, USER_START};

/// Longest single argument or environment string in bytes, terminating NUL included
/// (`MAX_ARG_STRLEN`, `execve(2)`).
pub const MAX_ARG_STRLEN: usize = 131_072;

/// `a_type` values of `<linux/auxvec.h>` that this module fills in or looks at.
const AT_NULL: u64 = 0;
const AT_PLATFORM: u64 = 15;
const AT_RANDOM: u64 = 25;
const AT_EXECFN: u64 = 31;

/// Bytes per pointer, and per half of an auxiliary vector entry.
const WORD_LEN: u64 = 8;

/// The bytes at the top of a new program's stack, to be copied to [`StackImage::base`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackImage {
    /// The stack pointer at the first instruction: the address of argc, 16-byte aligned.
    pub sp: u64,
    /// Address of the first byte of `bytes`. It equals `sp`, as nothing is stored below argc.
    pub base: u64,
    /// Contents from `base` to the top given to [`build_stack`].
    pub bytes: Vec<u8>,
    /// Range of the argument strings (`mm->arg_start`, `arg_end`).
    pub args: Range<u64>,
    /// Range of the environment strings (`mm->env_start`, `env_end`).
    pub env: Range<u64>,
    /// Range of the auxiliary vector, AT_NULL included.
    pub auxv: Range<u64>,
}

/// Lays out the first stack, from high to low addresses: 8 zero bytes, `execfn`, environment
/// strings, argument strings, `platform`, 16 random bytes, then (ascending from the stack pointer)
/// argc, argv, NULL, envp, NULL, auxiliary vector.
///
/// * `top`: address of the end of the stack, exclusive.
/// * `aux`: pairs of `a_type` and value, in the order wanted. AT_RANDOM, AT_EXECFN and AT_PLATFORM
///   get their addresses here: in place if `aux` names them, else at its end. AT_NULL is appended;
///   entries of that type are left out. With an empty `platform` there is no AT_PLATFORM.
/// * `max_len`: largest size of the whole block in bytes (Linux: a quarter of RLIMIT_STACK, at
///   most 6 MiB, at least 128 KiB).
///
/// Without any argument argv[0] becomes the empty string, as in Linux since 5.18.
///
/// # Errors
/// * E2BIG: [`ElfError::StringTooLong`], [`ElfError::StackTooLarge`].
/// * ENAMETOOLONG: [`ElfError::PathTooLong`] for `execfn`.
/// * EINVAL: [`ElfError::InteriorNul`], [`ElfError::BadStackTop`].
#[expect(
    clippy::too_many_arguments,
    reason = "one call per exec; each is a plain input"
)]
pub fn build_stack(
    top: u64,
    args: &[&[u8]],
    env: &[&[u8]],
    aux: &[(u64, u64)],
    random: [u8; 16],
    platform: &[u8],
    execfn: &[u8],
    max_len: u64,
) -> Result<StackImage, ElfError> {
    let args = if args.is_empty() { &[&b""[..]] } else { args };
    check_strings(args, env, platform, execfn)?;

    let mut wanted: Vec<(u64, u64)> = aux
        .iter()
        .copied()
        .filter(|&(kind, _)| kind != AT_NULL && (kind != AT_PLATFORM || !platform.is_empty()))
        .collect();
    for kind in [AT_RANDOM, AT_EXECFN, AT_PLATFORM] {
        let named = wanted.iter().any(|&(other, _)| other == kind);
        if !named && (kind != AT_PLATFORM || !platform.is_empty()) {
            wanted.push((kind, 0));
        }
    }

    let layout = Layout::new(top, args, env, wanted.len(), platform, execfn, max_len)?;
    for entry in &mut wanted {
        match entry.0 {
            AT_RANDOM => entry.1 = layout.random,
            AT_EXECFN => entry.1 = layout.execfn,
            AT_PLATFORM => entry.1 = layout.platform,
            _ => {}
        }
    }

    let mut out = Writer::new(layout.sp, layout.len);
    out.word(args.len() as u64);
    out.pointers(layout.args, args);
    out.pointers(layout.env, env);
    let auxv = out.at();
    for (kind, value) in wanted {
        out.word(kind);
        out.word(value);
    }
    out.word(AT_NULL);
    out.word(0);
    let auxv = auxv..out.at();
    out.skip_to(layout.random);
    out.bytes.extend_from_slice(&random);
    if !platform.is_empty() {
        out.skip_to(layout.platform);
        out.string(platform);
    }
    out.skip_to(layout.args);
    for text in args.iter().chain(env) {
        out.string(text);
    }
    out.string(execfn);
    out.skip_to(top);
    Ok(StackImage {
        sp: layout.sp,
        base: layout.sp,
        bytes: out.bytes,
        args: layout.args..layout.env,
        env: layout.env..layout.execfn,
        auxv,
    })
}

/// Lengths of single strings, and no NUL in any.
fn check_strings(
    args: &[&[u8]],
    env: &[&[u8]],
    platform: &[u8],
    execfn: &[u8],
) -> Result<(), ElfError> {
    if execfn.len() >= PATH_MAX {
        return Err(ElfError::PathTooLong(execfn.len()));
    }
    let named = [("an argument", args), ("an environment string", env)];
    for (name, strings) in named {
        for text in strings {
            if text.len() >= MAX_ARG_STRLEN {
                return Err(ElfError::StringTooLong(text.len()));
            }
            if text.contains(&0) {
                return Err(ElfError::InteriorNul(name));
            }
        }
    }
    for (name, text) in [
        ("the platform name", platform),
        ("the executable's path", execfn),
    ] {
        if text.contains(&0) {
            return Err(ElfError::InteriorNul(name));
        }
    }
    Ok(())
}

/// Addresses of everything, computed before a byte is allocated.
struct Layout {
    sp: u64,
    /// From `sp` to the top, in bytes.
    len: u64,
    random: u64,
    platform: u64,
    args: u64,
    env: u64,
    execfn: u64,
}

impl Layout {
    fn new(
        top: u64,
        args: &[&[u8]],
        env: &[&[u8]],
        aux_count: usize,
        platform: &[u8],
        execfn: &[u8],
        max_len: u64,
    ) -> Result<Self, ElfError> {
        if !(USER_START..=USER_END).contains(&top) {
            return Err(ElfError::BadStackTop(top));
        }
        let stored = |text: &[u8]| (text.len() as u64).saturating_add(1);
        let total = |strings: &[&[u8]]| {
            strings
                .iter()
                .fold(0u64, |sum, text| sum.saturating_add(stored(text)))
        };
        let arg_len = total(args);
        let env_len = total(env);
        let platform_len = if platform.is_empty() {
            0
        } else {
            stored(platform)
        };
        // argc, two NULLs, and two words per auxiliary entry with AT_NULL.
        let words = (args.len() as u64)
            .saturating_add(env.len() as u64)
            .saturating_add((aux_count as u64).saturating_mul(2))
            .saturating_add(5);
        // The two roundings to 16 bytes need at most 30 more.
        let needed = [
            WORD_LEN,
            stored(execfn),
            env_len,
            arg_len,
            platform_len,
            16,
            words.saturating_mul(WORD_LEN),
            30,
        ]
        .into_iter()
        .fold(0u64, u64::saturating_add);
        let limit = max_len.min(top.saturating_sub(USER_START));
        if needed > limit {
            return Err(ElfError::StackTooLarge { needed, limit });
        }
        // `needed` fits below `top`, so none of these subtractions can wrap.
        let execfn = top.wrapping_sub(WORD_LEN).wrapping_sub(stored(execfn));
        let env = execfn.wrapping_sub(env_len);
        let args = env.wrapping_sub(arg_len);
        let platform = (args & !15).wrapping_sub(platform_len);
        let random = platform.wrapping_sub(16);
        let sp = random.wrapping_sub(words.wrapping_mul(WORD_LEN)) & !15;
        Ok(Self {
            sp,
            len: top.wrapping_sub(sp),
            random,
            platform,
            args,
            env,
            execfn,
        })
    }
}

/// Appends at ascending addresses.
struct Writer {
    base: u64,
    bytes: Vec<u8>,
}

impl Writer {
    fn new(base: u64, len: u64) -> Self {
        Self {
            base,
            bytes: Vec::with_capacity(usize::try_from(len).unwrap_or(0)),
        }
    }

    /// Address of the next byte.
    fn at(&self) -> u64 {
        self.base.wrapping_add(self.bytes.len() as u64)
    }

    fn word(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
    }

    /// The addresses of `strings` stored one after the other from `address`, and a NULL.
    fn pointers(&mut self, mut address: u64, strings: &[&[u8]]) {
        for text in strings {
            self.word(address);
            address = address.wrapping_add(text.len() as u64).wrapping_add(1);
        }
        self.word(0);
    }

    /// Zeroes up to `address`.
    fn skip_to(&mut self, address: u64) {
        let len = address.wrapping_sub(self.base);
        if let Ok(len) = usize::try_from(len)
            && len >= self.bytes.len()
        {
            self.bytes.resize(len, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Errno;
    use proptest::prelude::*;

    const TOP: u64 = 0x7fff_ffff_e000;
    const MAX: u64 = 2 << 20;

    fn word(stack: &StackImage, address: u64) -> u64 {
        let at = usize::try_from(address - stack.base).unwrap();
        u64::from_le_bytes(stack.bytes[at..at + 8].try_into().unwrap())
    }

    fn text(stack: &StackImage, address: u64) -> Vec<u8> {
        let at = usize::try_from(address - stack.base).unwrap();
        stack.bytes[at..]
            .iter()
            .copied()
            .take_while(|&b| b != 0)
            .collect()
    }

    type Read = (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<(u64, u64)>);

    /// What a C library's start-up code would find.
    fn read(stack: &StackImage) -> Read {
        let argc = word(stack, stack.sp);
        let mut at = stack.sp + 8;
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            loop {
                let pointer = word(stack, at);
                at += 8;
                if pointer == 0 {
                    break;
                }
                list.push(text(stack, pointer));
            }
        }
        assert_eq!(lists[0].len() as u64, argc);
        assert_eq!(at, stack.auxv.start);
        let mut aux = Vec::new();
        loop {
            let entry = (word(stack, at), word(stack, at + 8));
            at += 16;
            if entry.0 == AT_NULL {
                break;
            }
            aux.push(entry);
        }
        assert_eq!(at, stack.auxv.end);
        let [args, env] = lists;
        (args, env, aux)
    }

    fn value(aux: &[(u64, u64)], kind: u64) -> u64 {
        aux.iter().find(|e| e.0 == kind).unwrap().1
    }

    #[test]
    fn start_up_code_finds_everything() {
        let random = *b"0123456789abcdef";
        let stack = build_stack(
            TOP,
            &[b"prog", b"", b"two words"],
            &[b"A=1", b"PATH=/bin"],
            &[(6, 4096), (AT_RANDOM, 7), (0, 9), (9, 0x40_1000)],
            random,
            b"x86_64",
            b"/bin/prog",
            MAX,
        )
        .unwrap();
        assert_eq!(stack.sp % 16, 0);
        assert_eq!(stack.base + stack.bytes.len() as u64, TOP);
        let (args, env, aux) = read(&stack);
        assert_eq!(args, [&b"prog"[..], b"", b"two words"]);
        assert_eq!(env, [&b"A=1"[..], b"PATH=/bin"]);
        assert_eq!(
            aux.iter().map(|e| e.0).collect::<Vec<_>>(),
            [6, AT_RANDOM, 9, AT_EXECFN, AT_PLATFORM]
        );
        assert_eq!(value(&aux, 9), 0x40_1000);
        assert_eq!(text(&stack, value(&aux, AT_EXECFN)), b"/bin/prog");
        assert_eq!(text(&stack, value(&aux, AT_PLATFORM)), b"x86_64");
        let at = usize::try_from(value(&aux, AT_RANDOM) - stack.base).unwrap();
        assert_eq!(stack.bytes[at..at + 16], random);
        let range = |r: &Range<u64>| {
            let to = |a: u64| usize::try_from(a - stack.base).unwrap();
            stack.bytes[to(r.start)..to(r.end)].to_vec()
        };
        assert_eq!(range(&stack.args), b"prog\0\0two words\0");
        assert_eq!(range(&stack.env), b"A=1\0PATH=/bin\0");
        assert!(stack.bytes.ends_with(b"/bin/prog\0\0\0\0\0\0\0\0\0"));
    }

    #[test]
    fn no_argument_becomes_one_empty_argument() {
        let stack = build_stack(TOP, &[], &[], &[], [0; 16], b"", b"/x", MAX).unwrap();
        let (args, env, aux) = read(&stack);
        assert_eq!((args.len(), env.len()), (1, 0));
        assert!(args[0].is_empty());
        assert_eq!(aux.len(), 2);
    }

    #[test]
    fn limits_are_errors() {
        let errno = |args: &[&[u8]], execfn: &[u8], max_len| {
            build_stack(TOP, args, &[], &[], [0; 16], b"", execfn, max_len)
                .map(|_| ())
                .map_err(|error| error.errno())
        };
        let long = vec![b'a'; MAX_ARG_STRLEN];
        assert_eq!(errno(&[&long], b"/x", MAX), Err(Errno::E2big));
        assert_eq!(errno(&[&long[1..]], b"/x", MAX), Ok(()));
        assert_eq!(errno(&[&long[1..]], b"/x", 100_000), Err(Errno::E2big));
        assert_eq!(
            errno(&[&b"a"[..]; 100_000], b"/x", 900_000),
            Err(Errno::E2big)
        );
        assert_eq!(
            errno(&[b"a"], &long[..PATH_MAX], MAX),
            Err(Errno::Enametoolong)
        );
        assert_eq!(errno(&[b"a"], &long[1..PATH_MAX], MAX), Ok(()));
        assert_eq!(errno(&[b"a\0b"], b"/x", MAX), Err(Errno::Einval));
        for top in [0, USER_START - 1, USER_END + 1, u64::MAX] {
            let result = build_stack(top, &[], &[], &[], [0; 16], b"", b"", MAX);
            assert_eq!(result, Err(ElfError::BadStackTop(top)));
        }
        let result = build_stack(USER_START + 64, &[], &[], &[], [0; 16], b"", b"", MAX);
        assert_eq!(result.unwrap_err().errno(), Errno::E2big);
    }

    proptest! {
        #[test]
        fn reads_back_what_was_given(
            top in USER_START..=USER_END,
            args in proptest::collection::vec(proptest::collection::vec(1u8.., 0..40), 1..20),
            env in proptest::collection::vec(proptest::collection::vec(1u8.., 0..40), 0..20),
            aux in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20),
            platform in proptest::collection::vec(1u8.., 0..10),
            max_len in 0u64..4000,
        ) {
            let a: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            let e: Vec<&[u8]> = env.iter().map(Vec::as_slice).collect();
            match build_stack(top, &a, &e, &aux, [7; 16], &platform, b"/x", max_len) {
                Ok(stack) => {
                    prop_assert!(stack.bytes.len() as u64 <= max_len);
                    prop_assert!(stack.sp >= USER_START && stack.sp % 16 == 0);
                    prop_assert_eq!(stack.base + stack.bytes.len() as u64, top);
                    let (read_args, read_env, _) = read(&stack);
                    prop_assert_eq!(read_args, args);
                    prop_assert_eq!(read_env, env);
                }
                Err(error) => prop_assert_eq!(error.errno(), Errno::E2big),
            }
        }
    }
}
