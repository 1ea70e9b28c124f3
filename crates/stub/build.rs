//! Assembles the in-guest code with the layout constants of kvmlet-abi.

// A build script writes files; the wall is for what runs beside guests.
#![allow(clippy::disallowed_methods)]

use std::error::Error;

use kvmlet_abi::{call_page, layout};

#[path = "src/geometry.rs"]
#[allow(dead_code)]
mod geometry;

mod build_vdso;

fn main() -> Result<(), Box<dyn Error>> {
    assemble()?;
    build_vdso::build()
}

fn assemble() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/geometry.rs");
    println!("cargo:rerun-if-changed=src/asm/stub.S");
    let constants = [
        ("K_PORT_SYSCALL", u64::from(layout::PORT_SYSCALL)),
        ("K_PORT_PROBE", u64::from(layout::PORT_PROBE)),
        ("K_PORT_EXCEPTION", u64::from(layout::PORT_EXCEPTION)),
        ("K_VECTORS", u64::from(layout::EXCEPTION_VECTORS)),
        ("K_SYSCALL_CODE", layout::SYSCALL_CODE.0),
        ("K_STUB_DATA", layout::STUB_DATA.0),
        ("K_CALL_PAGE", layout::CALL_PAGE.0),
        ("K_CALL_NR", call_page::NR),
        ("K_CALL_ARGS", call_page::ARGS),
        ("K_CALL_POSTED", call_page::POSTED),
        ("K_CALL_ANSWERED", call_page::ANSWERED),
        ("K_CALL_ANSWER", call_page::ANSWER),
        ("K_CALL_MODE", call_page::MODE),
        ("K_CALL_SPIN", call_page::SPIN_TICKS),
        ("K_CALL_DEADLINE", call_page::DEADLINE),
        ("K_CALL_CAME_FROM", call_page::CAME_FROM),
        ("K_CALL_ASK", call_page::ASK),
        ("K_ASK_EVERY", call_page::ASK_EVERY),
        ("K_ENTRY_STRIDE", geometry::ENTRY_STRIDE_BYTES),
        ("K_FLUSH_HARDWARE", geometry::FLUSH_HARDWARE_BYTES),
        ("K_FLUSH_SOFTWARE", geometry::FLUSH_SOFTWARE_BYTES),
        ("K_RELOAD", geometry::RELOAD_BYTES),
        ("K_CLEAN", geometry::CLEAN_BYTES),
        ("K_CLEAN_RELOAD", geometry::CLEAN_RELOAD_BYTES),
        ("K_INITIAL_XSTATE", geometry::INITIAL_XSTATE_BYTES),
        ("K_CSTAR_OFFSET", geometry::CSTAR_OFFSET_BYTES),
        ("K_FLUSH_MAX", geometry::MAX_FLUSH_PAGES as u64),
    ];
    let mut build = cc::Build::new();
    build.file("src/asm/stub.S");
    for (name, value) in constants {
        build.define(name, Some(value.to_string().as_str()));
    }
    build.try_compile("kvmlet_stub_asm")?;
    Ok(())
}
