//! kvmlet-hv
