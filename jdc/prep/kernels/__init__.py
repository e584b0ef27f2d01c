"""Compiled loops over the bytes of Arrow strings, and their plain-Python oracle."""
