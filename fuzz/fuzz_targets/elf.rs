//! Everything kvmlet-elf reads from a hostile file: headers and their plan, the interpreter's
//! path, the `#!` line, the symbol tables, and the strings of a first stack.
//!
//! Input: 8 bytes of load bias, 8 bytes of file length (0: as long as the rest), then the file.

#![no_main]

use kvmlet_elf::{
    LoadAction, PAGE_SIZE, Symbols, USER_END, USER_START, build_stack, find_function, parse,
    parse_shebang, read_interp,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((bias, rest)) = data.split_first_chunk::<8>() else {
        return;
    };
    let Some((file_len, file)) = rest.split_first_chunk::<8>() else {
        return;
    };
    let bias = u64::from_le_bytes(*bias);
    let file_len = match u64::from_le_bytes(*file_len) {
        0 => file.len() as u64,
        len => len,
    };

    if let Ok(image) = parse(file, file_len) {
        for bias in [0, bias, bias & !(PAGE_SIZE - 1), 0x5555_5555_4000] {
            let _ = image.entry_at(bias);
            let _ = image.phdr_at(bias);
            let Ok(plan) = image.plan(bias) else { continue };
            let span = image.span_at(bias).expect("a plan has a span");
            assert!(span.start >= USER_START && span.end <= USER_END);
            for action in plan {
                let (vaddr, len) = match action {
                    LoadAction::MapFile {
                        vaddr,
                        len,
                        file_offset,
                        ..
                    } => {
                        assert_eq!((vaddr | len | file_offset) % PAGE_SIZE, 0);
                        assert!(len - PAGE_SIZE <= file_len - file_offset);
                        (vaddr, len)
                    }
                    LoadAction::MapAnon { vaddr, len, .. } => {
                        assert_eq!((vaddr | len) % PAGE_SIZE, 0);
                        (vaddr, len)
                    }
                    LoadAction::ZeroTail { vaddr, len } => {
                        assert_eq!(vaddr / PAGE_SIZE, (vaddr + len - 1) / PAGE_SIZE);
                        (vaddr, len)
                    }
                };
                assert!(len > 0 && vaddr >= span.start && vaddr + len <= span.end);
            }
        }
    }

    if let Ok(path) = read_interp(file) {
        assert!(!path.is_empty() && !path.contains(&0));
    }
    if let Some(Ok(line)) = parse_shebang(file) {
        assert!(!line.interpreter.is_empty() && line.interpreter.len() < 256);
        assert!(!line.interpreter.contains(&0));
    }

    for symbols in [Symbols::All, Symbols::Exported] {
        let _ = find_function(&mut &*file, symbols, b"a");
    }

    let strings: Vec<&[u8]> = file.split(|&byte| byte == 0).collect();
    let (args, env) = strings.split_at(strings.len() / 2);
    if let Ok(stack) = build_stack(
        bias,
        args,
        env,
        &[(bias, file_len)],
        [0; 16],
        b"x86_64",
        b"/x",
        file_len,
    ) {
        assert_eq!(stack.sp % 16, 0);
        assert_eq!(stack.sp + stack.bytes.len() as u64, bias);
        assert!(stack.bytes.len() as u64 <= file_len);
    }
});
