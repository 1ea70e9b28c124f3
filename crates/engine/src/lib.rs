//! kvmlet-engine
