"""Operators that change text and rules that read it: pure functions on Arrow arrays."""
