//! kvmlet-policy
