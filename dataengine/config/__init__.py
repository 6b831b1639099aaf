"""One YAML file is one experiment: its bases, overrides and keys, checked once.

Input: a path and overrides. Output: a frozen `Config`, or one error with file, line and key of each problem. The
package knows the keys of a file, not their use: it reads no data and opens no store.
"""
