//! Builds the vDSO: one C file, linked by the compiler driver into a shared object in `OUT_DIR`.

use std::error::Error;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::{env, fs};

use kvmlet_abi::vdso_data::{
    VDSO_CLOCK_SLOTS, VDSO_MODE_TSC, VDSO_SHIFT, VdsoClock, VdsoData, VdsoTimestamp,
};

/// The engine maps two pages for the image.
const MAX_LEN_BYTES: u64 = 2 * kvmlet_abi::PAGE_SIZE;

/// Writes `vdso_layout.h` and `vdso.so` into `OUT_DIR`.
pub fn build() -> Result<(), Box<dyn Error>> {
    let out_dir = env::var("OUT_DIR")?;
    let out_dir = Path::new(&out_dir);
    let source = Path::new("src/vdso/vdso.c");
    let script = Path::new("src/vdso/vdso.lds");
    for input in [source, script, Path::new("build_vdso.rs")] {
        println!("cargo:rerun-if-changed={}", input.display());
    }

    fs::write(out_dir.join("vdso_layout.h"), layout_header()?)?;
    let image = out_dir.join("vdso.so");
    let compiler = cc::Build::new()
        .no_default_flags(true)
        .cargo_metadata(false)
        .opt_level(2)
        .try_get_compiler()?;
    let mut command = compiler.to_command();
    command
        .args(["-std=gnu11", "-O2", "-m64", "-fPIC", "-shared", "-nostdlib"])
        .args([
            "-ffreestanding",
            "-fvisibility=hidden",
            "-fno-stack-protector",
        ])
        .args(["-fcf-protection=none", "-fno-jump-tables"])
        .args(["-fasynchronous-unwind-tables", "-mgeneral-regs-only"])
        .args(["-Wall", "-Wextra", "-Werror"])
        .args(["-Wl,--hash-style=both", "-Wl,-soname=linux-vdso.so.1"])
        .args([
            "-Wl,-Bsymbolic",
            "-Wl,--build-id=none",
            "-Wl,--eh-frame-hdr",
        ])
        .args(["-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack", "-Wl,-s"])
        .arg("-I")
        .arg(out_dir)
        .arg("-Wl,-T")
        .arg(format!("-Wl,{}", script.display()))
        .arg("-o")
        .arg(&image)
        .arg(source);
    let status = command.status()?;
    if !status.success() {
        return Err(format!("{command:?} failed: {status}").into());
    }
    let len_bytes = fs::metadata(&image)?.len();
    if len_bytes > MAX_LEN_BYTES {
        return Err(format!("the vDSO has {len_bytes} bytes, more than {MAX_LEN_BYTES}").into());
    }
    Ok(())
}

/// The layout of the data page as C defines; the C file asserts that its struct agrees.
fn layout_header() -> Result<String, std::fmt::Error> {
    let mut header = String::from("/* Generated from kvmlet-abi's vdso_data. */\n");
    macro_rules! offsets {
        ($($field:ident),*) => {$(
            writeln!(header, "#define KVMLET_OFF_{} {}", stringify!($field), offset_of!(VdsoData, $field))?;
        )*};
    }
    offsets!(
        seq,
        mode,
        tsc_base,
        mult,
        mult_raw,
        base,
        coarse_res_ns,
        hres_ns,
        tz_minuteswest,
        tz_dsttime,
        cpu,
        node,
        generation
    );
    let constants = [
        ("SIZEOF_DATA", size_of::<VdsoData>()),
        ("SIZEOF_TIMESTAMP", size_of::<VdsoTimestamp>()),
        ("CLOCK_SLOTS", VDSO_CLOCK_SLOTS),
        ("SHIFT", VDSO_SHIFT as usize),
        ("MODE_TSC", VDSO_MODE_TSC as usize),
        ("CLOCK_REALTIME", VdsoClock::Realtime as usize),
        ("CLOCK_MONOTONIC", VdsoClock::Monotonic as usize),
        ("CLOCK_MONOTONIC_RAW", VdsoClock::MonotonicRaw as usize),
        ("CLOCK_REALTIME_COARSE", VdsoClock::RealtimeCoarse as usize),
        (
            "CLOCK_MONOTONIC_COARSE",
            VdsoClock::MonotonicCoarse as usize,
        ),
        ("CLOCK_BOOTTIME", VdsoClock::Boottime as usize),
        ("CLOCK_TAI", VdsoClock::Tai as usize),
    ];
    for (name, value) in constants {
        writeln!(header, "#define KVMLET_{name} {value}")?;
    }
    Ok(header)
}
