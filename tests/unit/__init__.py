"""Tests of the Python side that need neither KVM nor the built extension."""
