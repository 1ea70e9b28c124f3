//! kvmlet-mem
