//! Tests of the memory file system.
