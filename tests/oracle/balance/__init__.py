"""Loops for the components of one family, a file each."""
