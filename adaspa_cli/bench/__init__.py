"""Benches: plan and make runs of several methods, and make tables from their reports."""
