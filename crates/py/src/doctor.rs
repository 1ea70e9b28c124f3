//! The capability probe as a dictionary.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The probe's findings on this machine; never raises for what it finds. See `_native.pyi`.
#[pyfunction]
pub fn probe(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let report = py.detach(kvmlet_engine::probe);
    let found = PyDict::new(py);
    found.set_item("kvm", report.kvm.as_str())?;
    found.set_item("kvm_error", report.kvm_error)?;
    found.set_item("api_version", report.api_version)?;
    found.set_item(
        "kvm_kind",
        report.kvm_kind.map(|kvm_kind| kvm_kind.as_str()),
    )?;
    found.set_item("vm_ran", report.vm_ran)?;
    found.set_item("x_us", report.x_us)?;
    found.set_item("landlock", report.landlock)?;
    found.set_item(
        "landlock_rights",
        kvmlet_jail::landlock_rights(report.landlock),
    )?;
    found.set_item("seccomp", kvmlet_jail::seccomp_is_available())?;
    found.set_item("huge_pages", report.huge_pages)?;
    found.set_item("nested", report.nested)?;
    found.set_item("container", report.container)?;
    found.set_item("group", report.group)?;
    let caps = PyDict::new(py);
    for (name, value) in report.caps {
        caps.set_item(name, value)?;
    }
    found.set_item("caps", caps)?;
    Ok(found)
}
