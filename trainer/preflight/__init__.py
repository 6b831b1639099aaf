"""Everything that a run needs, looked at before its first step, and every problem said at once.

A config, a manifest, a run folder and the ranks come in; a list of problems and a description of the run go out.
Run and dry run look by the same function. It may not change anything, nor know Composer.
"""
