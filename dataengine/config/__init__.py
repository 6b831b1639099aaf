"""One YAML file is one experiment: its bases, overrides and keys, checked once.

A path and overrides come in; a frozen `Config` goes out, or one error that names the file, line and key of each
problem. It knows what may stand in a file, not what is done with it: it reads no data and opens no store.
"""
