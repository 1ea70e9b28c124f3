//! kvmlet-linux
