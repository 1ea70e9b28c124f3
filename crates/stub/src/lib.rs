//! kvmlet-stub
