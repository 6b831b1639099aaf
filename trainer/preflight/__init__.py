"""Check everything that a run needs before its first step, and report all problems at once.

Takes a config, a manifest, a run folder and the ranks; returns a list of problems and a description of the run. A run
and a dry run use the same function. The package changes nothing and does not import Composer.
"""
