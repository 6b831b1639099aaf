"""The subcommands of `dataengine`: build, plan, inspect, score, contamination, verify, export.

A command reads a config or a manifest, and prints tables or writes files. Commands call `build` and the packages below
it. They decide nothing about bytes, order or schedule. Only the trainer may import them.
"""
