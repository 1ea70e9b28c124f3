//! kvmlet-py
