"""Modules that several test files share: README.md has a table of them."""
